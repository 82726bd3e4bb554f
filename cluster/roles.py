"""How each role is made from a run's settings and its neighbours: the same for every runtime."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from actors.central import CentralRollout
from actors.envs import make_copies
from actors.evaluator import Evaluator
from actors.gathering import Gathering
from actors.gradients import GradientWorker
from actors.inference import Inference
from actors.rollout import Rollout
from actors.worker import Actor, OwnNetworks, Player
from cluster.config import Config, GradientsRun, LockstepRun, QueueRun, ReplayRun, algorithm_name
from cluster.contents import NOTHING_KEPT, Contents, Replay, Tell, shard_states, told
from cluster.course import Past
from cluster.figures import INFERENCE
from learner.lineup import Lineup
from learner.unroll_queue import UnrollQueue
from param_server.server import ParamServer
from param_server.slices import ParamSlice, cut
from replay_server.durable import DurableShard
from replay_server.router import Router
from replay_server.shard import ReplayShard
from starling.algorithms import ALGORITHMS
from starling.gradients import GradientSink, ValueSource
from starling.metrics import Clock
from starling.networks.arrays import first_params, layout_of
from starling.networks.forward import build_forward
from starling.params import Layout, Params
from starling.questions import ActionSource
from starling.spec import Spec
from starling.state import State, unpack_state
from starling.types import Algorithm, Array, Columns, ParamSink, ParamSource, Place, ReplaySink, ReplaySource

ACTOR, SHARD, ROUTER, LEARNER, PARAMS, ACTING = range(6)
"""Keeps the random numbers of the roles apart; a number here must never change, or runs stop repeating."""

NEWEST_TRIES, NEWEST_EVERY_S = 100, 0.05
VERSION_GAP = 1 << 40  # versions that are never reached between a state and a death: a successor's are above them


class Newest(NamedTuple):
    """Where those who learn go on from when there is no state of theirs."""

    version: int
    updates: int
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the first incarnations of a run's roles begin: at nothing, at a checkpoint, or with parameters alone."""

    past: Past = field(default_factory=Past)
    states: Mapping[str, State] = field(default_factory=dict)
    arrays: Columns = field(default_factory=dict)  # of networks, by name: what a new run begins with
    newest: Newest | None = None
    folder: str = ""  # of what outlives the shards
    contents: Contents = "new"
    lost: str = ""  # why the shards' contents are not those of the checkpoint

    def only(self, name: str) -> "Start":
        """Return what one role needs of it."""
        states = {name: self.states[name]} if name in self.states else {}
        return replace(self, states=states)

    @property
    def replay(self) -> Replay:
        """Return what the shards need of it."""
        learner = self.states.get("learner[0]", State())
        heard = [origin for origin, _ in learner.meta.get("source", {}).get("heard", [])]
        return Replay(
            folder=self.folder, contents=self.contents, states=shard_states(self.states), heard=max(heard, default=0)
        )

    def restore(self, name: str, role: Any, generation: int) -> None:
        """Hand a role its state, if it is the one that the state was kept for."""
        if name in self.states and not generation:
            role.restore(self.states[name])


FRESH = Start()


def build_algorithm(config: Config[Any]) -> Algorithm:
    """Return the algorithm that the settings choose."""
    return ALGORITHMS[algorithm_name(config)].build(config.algorithm)


def seed_of(config: Config[Any], role: int, index: int = 0, generation: int = 0) -> np.random.SeedSequence:
    """Return the seed of one incarnation of a role; it depends on nothing else."""
    return np.random.SeedSequence(config.seed, spawn_key=(role, index, generation))


def actor_seed(config: Config[Any], index: int, number: int, generation: int = 0) -> tuple[np.random.SeedSequence, int]:
    """Return with which seed and as which generation an actor begins after checkpoint `number`.

    Unrolls of a later one are told from those of all before, whoever sent them.
    """
    incarnation = (number << 16) + generation
    return seed_of(config, ACTOR, index, incarnation), incarnation


def build_shard(
    config: ReplayRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    generation: int = 0,
    replay: Replay = NOTHING_KEPT,
    tell: Tell | None = None,
) -> DurableShard:
    """Return shard number `index` with what it is to hold; the keys of no two generations are alike."""
    algorithm = build_algorithm(config)
    assert algorithm.window is not None, "only windows are replayed"
    rng = np.random.default_rng(seed_of(config, SHARD, index, generation))
    origin = replay.origin(index, generation)
    shard = ReplayShard(config.replay, spec, algorithm.window, algorithm.columns(spec), rng, clock, origin)
    began = clock()
    made, restored = replay.durable(shard, index, generation, config.replay, clock, config.runtime == "ray")
    if tell is not None and restored is not None:
        for news in told(f"replay_server[{index}]", restored, clock() - began):
            tell(news)
    return made


def build_param_server(clock: Clock, generation: int = 0) -> ParamServer:
    """Return the parameter server."""
    return ParamServer(clock)


def build_actor(
    config: ReplayRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    sink: ReplaySink,
    params: ParamSource | None = None,
    inference: ActionSource | None = None,
    generation: int = 0,
    start: Start = FRESH,
) -> Actor:
    """Return actor number `index` with environment copies of its own."""
    number = start.past.number
    player = _player(config, spec, index, number, generation, params, inference, config.actor.fetch_every)
    return Actor(config.actor, player, sink, clock)


def build_unroll_actor(
    config: QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    learner: ReplaySink,
    newest: ParamSource | None = None,
    inference: ActionSource | None = None,
    generation: int = 0,
    start: Start = FRESH,
) -> Actor:
    """Return actor number `index` of those whose unrolls are learned from whole; in lockstep, if they are."""
    every = config.actor.fetch_every if isinstance(config, QueueRun) else 0
    player = _player(config, spec, index, start.past.number, generation, newest, inference, every)
    return Actor(config.actor, player, learner, clock)


def _player(
    config: ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    index: int,
    number: int,
    generation: int,
    params: ParamSource | None,
    inference: ActionSource | None,
    fetch_every: int,
) -> Player:
    """Return what an actor plays by: networks of its own, or those of an inference role."""
    lockstep = isinstance(config, LockstepRun)
    if inference is None:
        assert params is not None, "networks need parameters"
        return OwnNetworks(_rollout(config, spec, index, number, generation), params, fetch_every, lockstep)
    size = config.env.copies // config.inference.groups
    groups = [make_copies(replace(config.env, copies=size)) for _ in range(config.inference.groups)]
    place = Place(index, config.actor.num, config.env.copies)
    seed = actor_seed(config, index, number, generation)
    return CentralRollout(groups, build_algorithm(config), inference, place, *seed, ahead=not lockstep)


def build_inference(
    config: ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    generation: int = 0,
    number: int = 0,
    **params: ParamSource,
) -> Inference:
    """Return inference role number `index` after checkpoint `number`, which follows the one source of parameters."""
    algorithm, settings = build_algorithm(config), config.inference
    forward = build_forward(algorithm.acting(spec), spec, settings.device)
    if settings.threads > 1:
        import torch  # who asks for its threads has it

        torch.set_num_threads(settings.threads)
    (source,) = params.values()
    return Inference(
        f"{INFERENCE}[{index}]",
        algorithm,
        spec,
        forward,
        source,
        config.actor.num,
        config.env.copies,
        np.random.default_rng(inference_seed(config, index, number, generation)),
        clock,
        Gathering(settings.deadline_s, settings.max_copies),
    )


def inference_seed(config: Config[Any], index: int, number: int, generation: int = 0) -> np.random.SeedSequence:
    """Return with which seed an inference role begins after checkpoint `number`."""
    return seed_of(config, ACTING, index, (number << 16) + generation)


def _rollout(config: Config[Any], spec: Spec, index: int, number: int, generation: int) -> Rollout:
    algorithm = build_algorithm(config)
    return Rollout(
        make_copies(config.env),
        algorithm,
        build_forward(algorithm.acting(spec), spec),
        Place(index, config.actor.num, config.env.copies),
        *actor_seed(config, index, number, generation),
    )


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
    laid over it.
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
    if newest is not None:
        steps = newest.updates * steps_per_update(config)
        learner.begin_from(newest.params, newest.version, newest.updates, steps)
    if published is None:  # nobody says how far predecessors came: a gap for each of them
        learner.version += generation * VERSION_GAP
    return learner


def steps_per_update(config: Config[Any]) -> int:
    """Return how many steps an update of whole unrolls learns from; 0 where they are not learned from whole."""
    unroll = config.actor.unroll_length * config.env.copies
    match config:
        case QueueRun():
            return config.learner.unrolls * unroll
        case LockstepRun():
            return config.actor.num * unroll
    return 0


def _newest(params: ParamSource, updates_per_version: int) -> Newest | None:
    """Return what a learner that died had published; None if it published nothing, or its server died with it."""
    for _ in range(NEWEST_TRIES):
        if fresh := params.fetch(newer_than=0):
            version, published = fresh
            return Newest(version, version % VERSION_GAP * updates_per_version, published)  # gaps were never worked
        time.sleep(NEWEST_EVERY_S)
    return None


def build_slice(
    config: GradientsRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    generation: int = 0,
    newest: Array | None = None,
    start: Start = FRESH,
) -> ParamSlice:
    """Return slice number `index`: as it begins, or in the state `newest`, which its predecessor was last heard in."""
    networks = build_algorithm(config).networks(spec)
    values = first_params(networks, spec, np.random.default_rng(seed_of(config, PARAMS)))
    known = start.arrays if start.newest is None else start.newest.params.arrays()
    for name, array in values.arrays().items():
        array[...] = known.get(name, array)
    span = cut(values.layout.size, config.params.slices)[index]
    made = ParamSlice(config.params, values.buffer[span], clock)
    if start.newest is not None:
        made.begin_above(start.newest.version)
    start.restore(f"param_server[{index}]", made, generation=0)
    if newest is not None:
        made.restore(unpack_state(newest))
    if generation:  # a gap for each predecessor: the last one may have died before any state of it was heard
        made.begin_above(made.version + generation * VERSION_GAP)
    return made


def build_worker(
    config: GradientsRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    gradients: GradientSink,
    generation: int = 0,
    number: int = 0,
) -> GradientWorker:
    """Return worker number `index` after checkpoint `number`, with environment copies and networks of its own."""
    import torch  # only processes that differentiate pay for it

    from starling.networks.differentiator import Differentiator

    if config.runtime == "ray":  # in a process of its own
        torch.set_flush_denormal(True)
    algorithm = build_algorithm(config)
    seed, incarnation = actor_seed(config, index, number, generation)
    rollout = _rollout(config, spec, index, number, generation)
    learning = Differentiator(algorithm, spec, seed)
    clip_norm = float(config.params.clip_norm)
    return GradientWorker(config.actor, clip_norm, rollout, learning, gradients, incarnation, clock)


class OfSlices:
    """A ParamSource: what actors need of the values that slices hold together."""

    def __init__(self, values: ValueSource, layout: Layout) -> None:
        self._values = values
        self._layout = layout

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        """Return `(version, params)`, or None if there is nothing newer."""
        fresh = self._values.fetch(newer_than)
        return None if fresh is None else (fresh[0], Params(self._layout, fresh[1][: self._layout.size]))


def build_slices_evaluator(
    config: Config[Any], spec: Spec, clock: Clock, values: ValueSource, generation: int = 0, start: Start = FRESH
) -> Evaluator:
    """Return the evaluator of parameters that lie in slices."""
    source = OfSlices(values, layout_of(build_algorithm(config).acting(spec), spec))
    return build_evaluator(config, spec, clock, source, generation, start)


def build_evaluator(
    config: Config[Any], spec: Spec, clock: Clock, params: ParamSource, generation: int = 0, start: Start = FRESH
) -> Evaluator:
    """Return the evaluator with environment copies of its own."""
    algorithm = build_algorithm(config)
    forward = build_forward(algorithm.acting(spec), spec)
    evaluator = Evaluator(
        config.evaluator,
        make_copies(replace(config.env, copies=config.evaluator.copies)),
        algorithm,
        forward,
        params,
        clock,
    )
    start.restore("evaluator[0]", evaluator, generation)
    return evaluator
