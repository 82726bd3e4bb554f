"""The learner beside the same losses and the same optimizers on batches that are tensors already."""

import time
from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch

from actors.envs import measure_spec
from cluster.bench.figure import Figure, Work, rates
from cluster.bench.neighbours import PackingSink, ReadyBatches, fresh_params, play
from cluster.config import LockstepRun, QueueRun, ReplayRun
from cluster.roles import build_algorithm, build_shard
from learner.config import QueueConfig
from learner.device import device_of
from learner.feeds import Feed, ReplayFeed, UnrollFeed, to_batch
from learner.optimizers import Optimizers
from learner.unroll_queue import UnrollQueue
from learner.worker import Learner
from replay_server.local import LocalReplay
from replay_server.router import Router
from starling import wire
from starling.batches import batch_of
from starling.metrics import no_clock
from starling.networks.nets import LearnerNets
from starling.spec import Spec
from starling.types import Batch, Sampled, Unroll, Updating

BATCHES = 32
UNROLLS = 64
FOR_EVER = 1 << 60  # uses of an unroll

Learning = ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any]
"""A run that has a learner"""


class Ready(NamedTuple):
    """What a learner learns from, as it comes to it and as it is computed with: the same batches over and over."""

    feed: Feed
    batches: Sequence[Batch]


def measure(config: Learning, preset: str, seconds: float) -> list[Figure]:
    """Return the updates per second of a learner whose next batch is always there."""
    spec = measure_spec(config.env)
    ready = ready_for(config, spec)
    torch.set_flush_denormal(True)  # as in a run
    algorithm = build_algorithm(config)
    learner = Learner(config.learner, algorithm, spec, ready.feed, PackingSink(), config.seed, time.monotonic)
    value, limit = rates([lambda: learner.step().work["updates"], bare_updates(config, spec, ready.batches)], seconds)
    figure = Figure(
        name=f"learner.efficiency.{preset}",
        value=value,
        unit="updates/s",
        limit=limit,
        limit_name="the same on tensors in memory",
        settings={
            "batch": tuple(ready.batches[0].reward.shape),
            "threads": config.learner.threads,
            "device": learner.device.type,
            "parameters": learner.nets.layout.size,
        },
    )
    return [figure]


def ready_for(config: Learning, spec: Spec) -> Ready:
    """Return batches of what actors played, as the run's learner gets them."""
    device = device_of(config.learner)
    if not isinstance(config, ReplayRun):
        return _of_unrolls(config, played_unrolls(config, spec), device)
    window = build_algorithm(config).window
    assert window is not None, "only windows are replayed"
    sampled = sampled_batches(config, spec)
    batches = [to_batch(each.columns, each.weights, device, window, each.starts) for each in sampled]
    return Ready(ReplayFeed(ReadyBatches(sampled), device, window), batches)


def _of_unrolls(config: QueueRun[Any] | LockstepRun[Any], unrolls: Sequence[Unroll], device: torch.device) -> Ready:
    per_update = config.learner.unrolls if isinstance(config, QueueRun) else config.actor.num
    queue = UnrollQueue(QueueConfig(capacity=len(unrolls), uses=FOR_EVER), per_update, 1, no_clock)
    for unroll in unrolls:
        queue.insert(unroll)
    pieces = [unrolls[start : start + per_update] for start in range(0, len(unrolls), per_update)]
    return Ready(UnrollFeed(queue, device), [batch_of(piece, device) for piece in pieces])


def played_unrolls(config: QueueRun[Any] | LockstepRun[Any], spec: Spec) -> list[Unroll]:
    """Return unrolls for whole updates, as they come through shared memory."""
    per_update = config.learner.unrolls if isinstance(config, QueueRun) else config.actor.num
    count = per_update * -(-BATCHES // per_update)
    played = play(config, spec, fresh_params(config, spec), 0, config.actor.unroll_length, count)
    packed = [wire.encode_whole(unroll) for unroll in played]
    for buffer in packed:
        buffer.flags.writeable = False
    return [wire.decode_whole(buffer) for buffer in packed]


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


def bare_updates(config: Learning, spec: Spec, batches: Sequence[Batch]) -> Work:
    """Return one update after another, and whatever else the algorithm's mathematics asks for."""
    algorithm = build_algorithm(config)
    device = device_of(config.learner)
    generator = torch.Generator(device).manual_seed(config.seed)
    nets = LearnerNets(
        algorithm.networks(spec), algorithm.targets(), spec, torch.Generator().manual_seed(config.seed), device
    )
    endless = cycle(batches)
    optimizers = Optimizers(config.learner.optimizer, algorithm.groups(), nets)
    updates = 0

    def work() -> int:
        nonlocal updates
        optimizers.begin(updates)
        if isinstance(algorithm, Updating):
            algorithm.update(nets, optimizers, next(endless), generator)
        else:
            optimizers.step(algorithm.losses(nets, next(endless), generator).groups)
        updates += 1
        nets.follow(updates)
        return 1

    return work
