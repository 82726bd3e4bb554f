"""How each role is made from a run's settings and its neighbours: the same for every runtime."""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from actors.envs import make_copies
from actors.evaluator import Evaluator
from actors.rollout import Rollout
from actors.worker import Actor
from cluster.config import Config, algorithm_name
from param_server.server import ParamServer
from replay_server.router import Router
from replay_server.shard import ReplayShard
from starling.algorithms import ALGORITHMS
from starling.metrics import Clock
from starling.networks.forward import build_forward
from starling.params import Params
from starling.spec import Spec
from starling.types import Algorithm, ParamSink, ParamSource, Place, ReplaySink, ReplaySource

ACTOR, SHARD, ROUTER, LEARNER = range(4)
"""Keeps the random numbers of the roles apart; a number here must never change, or runs stop repeating."""

NEWEST_TRIES, NEWEST_EVERY_S = 100, 0.05


class Start(NamedTuple):
    """Where a learner goes on from."""

    version: int
    updates: int
    params: Params


def build_algorithm(config: Config[Any]) -> Algorithm:
    """Return the algorithm that the settings choose."""
    return ALGORITHMS[algorithm_name(config)].build(config.algorithm)


def seed_of(config: Config[Any], role: int, index: int = 0, generation: int = 0) -> np.random.SeedSequence:
    """Return the seed of one incarnation of a role; it depends on nothing else."""
    return np.random.SeedSequence(config.seed, spawn_key=(role, index, generation))


def build_shard(config: Config[Any], spec: Spec, index: int, clock: Clock, generation: int = 0) -> ReplayShard:
    """Return shard number `index`; the keys of no two generations are alike."""
    algorithm = build_algorithm(config)
    rng = np.random.default_rng(seed_of(config, SHARD, index, generation))
    first_key = generation << 40
    return ReplayShard(config.replay, spec, algorithm.window, algorithm.columns(spec), rng, clock, first_key)


def build_param_server(clock: Clock, generation: int = 0) -> ParamServer:
    """Return the parameter server."""
    return ParamServer(clock)


def build_actor(
    config: Config[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    sink: ReplaySink,
    params: ParamSource,
    generation: int = 0,
) -> Actor:
    """Return actor number `index` with environment copies of its own."""
    algorithm = build_algorithm(config)
    rollout = Rollout(
        make_copies(config.env),
        algorithm,
        build_forward(algorithm.acting(spec), spec),
        Place(index, config.actor.num, config.env.copies),
        seed_of(config, ACTOR, index, generation),
        generation,
    )
    return Actor(config.actor, rollout, sink, params, clock)


def build_learner(
    config: Config[Any],
    spec: Spec,
    clock: Clock,
    source: ReplaySource,
    publisher: ParamSink,
    params: ParamSource,
    generation: int = 0,
    start: Start | None = None,
) -> Any:
    """Return the learner and the router through which it samples."""
    import torch  # only the learner's process pays for it

    from learner.worker import Learner

    if config.runtime == "ray":  # in a process of its own; shards that share it count on denormals
        torch.set_flush_denormal(True)  # those of a converged network cost a third of the speed

    router_rng = np.random.default_rng(seed_of(config, ROUTER, 0, generation))
    sizes = config.learner.batch_size, config.learner.batches_per_request, config.learner.requests_ahead
    router = Router(source, config.replay, router_rng, clock, *sizes)
    seed = int(seed_of(config, LEARNER, 0, generation).generate_state(1)[0])
    learner = Learner(config.learner, build_algorithm(config), spec, router, publisher, seed, clock)
    if generation:
        start = _newest(params, config) or start
    if start is not None:
        learner.begin_from(start.params, start.version, start.updates)
    return learner


def _newest(params: ParamSource, config: Config[Any]) -> Start | None:
    """Return what a learner that died had published; without it the successor begins anew."""
    for _ in range(NEWEST_TRIES):
        if fresh := params.fetch(newer_than=0):
            version, published = fresh
            return Start(version, version * config.learner.publish_every, published)
        time.sleep(NEWEST_EVERY_S)
    return None


def build_evaluator(
    config: Config[Any], spec: Spec, clock: Clock, params: ParamSource, generation: int = 0
) -> Evaluator:
    """Return the evaluator with environment copies of its own."""
    algorithm = build_algorithm(config)
    forward = build_forward(algorithm.acting(spec), spec)
    return Evaluator(
        config.evaluator,
        make_copies(replace(config.env, copies=config.evaluator.copies)),
        algorithm,
        forward,
        params,
        clock,
    )
