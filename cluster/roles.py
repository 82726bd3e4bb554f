"""How roles are made from a run's settings, its start and their neighbours: those that serve, and the evaluator."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from actors.envs import make_copies
from actors.evaluator import Evaluator
from cluster.config import Config, GradientsRun, LockstepRun, QueueRun, ReplayRun, algorithm_name
from cluster.contents import NOTHING_KEPT, Contents, Replay, Tell, shard_states, told
from cluster.course import Past
from param_server.server import ParamServer
from param_server.slices import ParamSlice, cut
from replay_server.durable import DurableShard
from replay_server.shard import ReplayShard
from starling.algorithms import ALGORITHMS
from starling.gradients import ValueSource
from starling.metrics import Clock
from starling.networks.arrays import first_params, layout_of
from starling.networks.forward import build_forward
from starling.params import Layout, Params
from starling.spec import Spec
from starling.state import State, unpack_state
from starling.types import Algorithm, Array, Columns, ParamSource

ACTOR, SHARD, ROUTER, LEARNER, PARAMS, ACTING = range(6)
"""Keeps the random numbers of the roles apart; a number here must never change, or runs stop repeating."""

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


def inference_seed(config: Config[Any], index: int, number: int, generation: int = 0) -> np.random.SeedSequence:
    """Return with which seed an inference role begins after checkpoint `number`."""
    return seed_of(config, ACTING, index, (number << 16) + generation)


def steps_per_update(config: Config[Any]) -> int:
    """Return how many steps an update of whole unrolls learns from; 0 where they are not learned from whole."""
    unroll = config.actor.unroll_length * config.env.copies
    match config:
        case QueueRun():
            return config.learner.unrolls * unroll
        case LockstepRun():
            return config.actor.num * unroll
    return 0


def build_slice(
    config: GradientsRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    generation: int = 0,
    kept: Array | None = None,
    start: Start = FRESH,
) -> ParamSlice:
    """Return slice number `index`: as it begins, or in the state `kept`, which its predecessor was last heard in."""
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
    if kept is not None:
        made.restore(unpack_state(kept))
    if generation:  # a gap for each predecessor: the last one may have died before any state of it was heard
        made.begin_above(made.version + generation * VERSION_GAP)
    return made


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
    config: Config[Any], spec: Spec, clock: Clock, judged: ParamSource, generation: int = 0, start: Start = FRESH
) -> Evaluator:
    """Return the evaluator with environment copies of its own."""
    algorithm = build_algorithm(config)
    forward = build_forward(algorithm.acting(spec), spec)
    evaluator = Evaluator(
        config.evaluator,
        make_copies(replace(config.env, copies=config.evaluator.copies)),
        algorithm,
        forward,
        judged,
        clock,
    )
    start.restore("evaluator[0]", evaluator, generation)
    return evaluator
