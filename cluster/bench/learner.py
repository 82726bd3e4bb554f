"""The learner beside the same losses and the same optimizers on batches that are tensors already."""

import time
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch

from actors.envs import measure_spec
from cluster.bench.figure import Figure, Work, rates
from cluster.bench.neighbours import PackingSink, ReadyBatches, fresh_params, play
from cluster.config import ReplayRun
from cluster.roles import build_algorithm, build_shard
from learner.device import device_of
from learner.feeds import ReplayFeed, to_batch
from learner.optimizers import Optimizers
from learner.worker import Learner
from replay_server.local import LocalReplay
from replay_server.router import Router
from starling.metrics import no_clock
from starling.networks.nets import LearnerNets
from starling.spec import Spec
from starling.types import Sampled

BATCHES = 32
UNROLLS = 64


def measure(config: ReplayRun[Any], preset: str, seconds: float) -> list[Figure]:
    """Return the updates per second of a learner whose next batch is always there."""
    spec = measure_spec(config.env)
    batches = sampled_batches(config, spec)
    torch.set_flush_denormal(True)  # as in a run
    algorithm = build_algorithm(config)
    assert algorithm.window is not None, "only windows are replayed"
    feed = ReplayFeed(ReadyBatches(batches), device_of(config.learner), algorithm.window)
    learner = Learner(config.learner, algorithm, spec, feed, PackingSink(), config.seed, time.monotonic)
    value, limit = rates([lambda: learner.step().work["updates"], bare_updates(config, spec, batches)], seconds)
    figure = Figure(
        name=f"learner.efficiency.{preset}",
        value=value,
        unit="updates/s",
        limit=limit,
        limit_name="the same on tensors in memory",
        settings={
            "batch_size": config.learner.batch_size,
            "threads": config.learner.threads,
            "device": learner.device.type,
            "parameters": learner.nets.layout.size,
        },
    )
    return [figure]


def sampled_batches(config: ReplayRun[Any], spec: Spec) -> list[Sampled]:
    """Return batches as the router makes them of what actors played."""
    shards = [build_shard(config, spec, index, no_clock) for index in range(config.replay.shards)]
    params = fresh_params(config, spec)
    for index, shard in enumerate(shards):
        for unroll in play(config, spec, params, index, config.actor.unroll_length, UNROLLS):
            shard.insert(unroll)
    rng = np.random.default_rng(config.seed)
    replay = type(config.replay)(min_windows=1, samples_per_insert=0.0, beta=config.replay.beta)
    router = Router(LocalReplay(shards), replay, rng, no_clock, config.learner.batch_size)
    taken = [router.take() for _ in range(BATCHES)]
    return [sampled for sampled in taken if isinstance(sampled, Sampled)]


def bare_updates(config: ReplayRun[Any], spec: Spec, batches: Sequence[Sampled]) -> Work:
    """Return one update after another, and whatever else the algorithm's mathematics asks for."""
    algorithm = build_algorithm(config)
    device = device_of(config.learner)
    generator = torch.Generator(device).manual_seed(config.seed)
    nets = LearnerNets(
        algorithm.networks(spec), algorithm.targets(), spec, torch.Generator().manual_seed(config.seed), device
    )
    tensors = cycle([to_batch(sampled.columns, sampled.weights, device) for sampled in batches])
    optimizers = Optimizers(config.learner.optimizer, algorithm.groups(), nets)
    updates = 0

    def work() -> int:
        nonlocal updates
        losses = algorithm.losses(nets, next(tensors), generator)
        optimizers.begin(updates)
        optimizers.step(losses.groups)
        updates += 1
        nets.follow(updates)
        return 1

    return work
