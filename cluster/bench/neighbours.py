"""Neighbours that never make a role wait: they do the packing that its own process does in a run, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.envs import make_copies
from actors.rollout import Rollout
from cluster.config import Config, QueueRun
from cluster.roles import ACTOR, build_algorithm, seed_of
from learner.unroll_queue import UnrollQueue
from starling import wire
from starling.metrics import Clock, Meter, no_clock
from starling.networks.forward import build_forward
from starling.networks.modules import build_modules
from starling.params import Params
from starling.spec import Spec
from starling.types import Place, Progress, Sampled, Ticket, Unroll


class PackingSink:
    """Takes every unroll and every version."""

    def insert(self, unroll: Unroll) -> None:
        """Pack an unroll and forget it."""
        wire.encode_unroll(unroll) if unroll.next_obs is None else wire.encode_whole(unroll)

    def must_wait(self) -> str:
        """Never wait."""
        return ""

    def publish(self, version: int, params: Params) -> None:
        """Pack parameters and forget them."""
        wire.encode_params(params)


class Taker:
    """Takes unrolls and forgets them: a learner whose updates take no time."""

    def __init__(self, config: QueueRun[Any], clock: Clock, generation: int = 0) -> None:
        once = replace(config.queue, uses=1)  # what is learned from again does not come again
        self.inlet = UnrollQueue(once, config.learner.unrolls, config.actor.num, clock)
        self._meter = Meter(clock)

    def step(self) -> Progress:
        """Take an update's unrolls, or say what for it waits."""
        unrolls = self.inlet.take(version=1)
        if isinstance(unrolls, str):
            return Progress(waits=unrolls)
        self._meter.count("unrolls", len(unrolls))
        return Progress(work={"unrolls": len(unrolls)})

    def stats(self) -> dict[str, Any]:
        """Return how many came."""
        return self._meter.snapshot()


class OneVersion:
    """Has one version of the parameters."""

    def __init__(self, params: Params) -> None:
        self._params = params

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        """Return version 1 to whoever has none."""
        return (1, self._params) if newer_than < 1 else None


class EveryVersion:
    """Has the next version of the parameters for whoever asks, always the same ones."""

    def __init__(self, params: Params) -> None:
        self._params = params

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        """Return the version after the one that is there."""
        return newer_than + 1, self._params


class ReadyBatches:
    """Serves the same batches over and over."""

    def __init__(self, batches: Sequence[Sampled]) -> None:
        self._batches = cycle(batches)

    def take(self) -> Sampled | str:
        """Return the next batch."""
        return next(self._batches)

    def update_priorities(self, ticket: Ticket, priorities: NDArray[np.float64]) -> None:
        """Forget priorities."""


def fresh_params(config: Config[Any], spec: Spec) -> Params:
    """Return parameters as a run begins with them."""
    import torch  # for the weights alone

    networks = build_algorithm(config).acting(spec)
    modules = build_modules(networks, spec, torch.Generator().manual_seed(config.seed))
    arrays = {f"{n}.{p}": tensor.detach().numpy() for n, m in modules.items() for p, tensor in m.named_parameters()}
    return Params.of(arrays)


def play(config: Config[Any], spec: Spec, params: Params, actor: int, length: int, count: int) -> list[Unroll]:
    """Return consecutive unrolls of `length` steps of every copy, each completing windows begun in the one before."""
    algorithm = build_algorithm(config)
    rollout = Rollout(
        make_copies(config.env),
        algorithm,
        build_forward(algorithm.acting(spec), spec),
        Place(actor, config.actor.num, config.env.copies),
        seed_of(config, ACTOR, actor),
    )
    rollout.load(params)
    unrolls = [rollout.collect(length, 1, Meter(no_clock)) for _ in range(count + 1)]
    rollout.close()
    return [replace(unroll, sequence=index) for index, unroll in enumerate(unrolls[1:])]
