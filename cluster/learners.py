"""How learners are made: where their batches come from, and what they go on from."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cluster.config import LockstepRun, QueueRun, ReplayRun
from cluster.roles import (
    FRESH,
    LEARNER,
    ROUTER,
    VERSION_GAP,
    Newest,
    Start,
    build_algorithm,
    seed_of,
    steps_per_update,
)
from learner.lineup import Lineup
from learner.unroll_queue import UnrollQueue
from replay_server.router import Router
from starling.metrics import Clock
from starling.spec import Spec
from starling.state import unpack_state
from starling.types import Algorithm, Array, ParamSink, ParamSource, ReplaySource

NEWEST_TRIES, NEWEST_EVERY_S = 100, 0.05


def build_learner(
    config: ReplayRun[Any],
    spec: Spec,
    clock: Clock,
    source: ReplaySource,
    publisher: ParamSink,
    params: ParamSource,
    generation: int = 0,
    start: Start = FRESH,
    kept: Array | None = None,
) -> Any:
    """Return the learner and the router through which it samples."""
    router_rng = np.random.default_rng(seed_of(config, ROUTER, 0, generation))
    sizes = config.learner.batch_size, config.learner.batches_per_request, config.learner.requests_ahead
    router = Router(source, config.replay, router_rng, clock, *sizes, takes_over=generation > 0)

    def feed(algorithm: Algorithm) -> Any:
        from learner.device import device_of  # torch: only the learner's process pays for it
        from learner.feeds import ReplayFeed

        assert algorithm.window is not None, "only windows are replayed"
        return ReplayFeed(router, device_of(config.learner), algorithm.window)

    learner = _learner(config, spec, clock, feed, publisher, params, generation, start, kept)
    if start.lost and not generation:
        router.begin_anew()
    return learner


def build_unroll_learner(
    config: QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    clock: Clock,
    publisher: ParamSink,
    params: ParamSource,
    generation: int = 0,
    start: Start = FRESH,
    kept: Array | None = None,
) -> Any:
    """Return the learner, with the queue or the lineup that actors send their unrolls to."""

    def feed(algorithm: Algorithm) -> Any:
        from learner.device import device_of
        from learner.feeds import UnrollFeed

        return UnrollFeed(_place_of(config, clock), device_of(config.learner))

    return _learner(config, spec, clock, feed, publisher, params, generation, start, kept)


def _place_of(config: QueueRun[Any] | LockstepRun[Any], clock: Clock) -> UnrollQueue | Lineup:
    if isinstance(config, LockstepRun):
        return Lineup(config.actor.num, clock)
    return UnrollQueue(config.queue, config.learner.unrolls, config.actor.num, clock)


def _learner(
    config: ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    clock: Clock,
    feed: Callable[[Algorithm], Any],
    publisher: ParamSink,
    params: ParamSource,
    generation: int,
    start: Start,
    kept: Array | None,
) -> Any:
    """Return the learner as its run goes on: from a state, from what its predecessor published, or at nothing.

    `kept` is the state that a predecessor was last heard in: what is not published is taken from there, and the rest
    laid over it, unless the server was slow or down and has something older.
    """
    import torch

    from learner.worker import Learner

    if config.runtime == "ray":  # in a process of its own; shards that share it count on denormals
        torch.set_flush_denormal(True)  # those of a converged network cost a third of the speed
    algorithm = build_algorithm(config)
    seed = int(seed_of(config, LEARNER, 0, generation).generate_state(1)[0])
    learner = Learner(config.learner, algorithm, spec, feed(algorithm), publisher, seed, clock)
    learner.initialise(start.arrays)
    published = _newest(params, config.learner.updates_per_version) if generation else None
    newest = published or (start.newest if kept is None else None)
    start.restore("learner[0]", learner, 0 if newest is None and kept is None else generation)
    if kept is not None:
        learner.succeed(unpack_state(kept))
    if newest is not None and newest.version >= learner.version:
        steps = newest.updates * steps_per_update(config)
        learner.begin_from(newest.params, newest.version, newest.updates, steps)
    if published is None:  # nobody says how far predecessors came: a gap for each of them
        learner.version += generation * VERSION_GAP
    return learner


def _newest(params: ParamSource, updates_per_version: int) -> Newest | None:
    """Return what a learner that died had published; None if it published nothing, or its server died with it."""
    for _ in range(NEWEST_TRIES):
        if fresh := params.fetch(newer_than=0):
            version, published = fresh
            return Newest(version, version % VERSION_GAP * updates_per_version, published)  # gaps were never worked
        time.sleep(NEWEST_EVERY_S)
    return None
