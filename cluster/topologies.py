"""What differs between topologies for whoever starts, watches and keeps a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster import launch
from cluster.config import Config, topology_of
from cluster.roles import build_algorithm
from starling.algorithms import Topology
from starling.networks.arrays import layout_of
from starling.params import Params
from starling.spec import Spec
from starling.state import State

States = Mapping[str, State]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """How a topology is launched, who in it learns, and where its parameters are found in what they keep."""

    launch: Callable[..., None]
    learns: str  # the kind of role whose updates are the run's; of several, those of the one furthest behind
    counter: str  # under which it counts them
    keeps: Sequence[str]
    """Kinds of roles whose states a checkpoint holds beside the shards', in the order in which they are asked"""
    version: Callable[[States], int]
    params: Callable[[Config[Any], Spec, States], Params]
    """What actors need, from the states of those who learn"""


def arrangement_of(config: Config[Any]) -> Arrangement:
    """Return how a run of these settings is arranged."""
    return ARRANGEMENTS[topology_of(config)]


def learning(states: States, kind: str) -> list[State]:
    """Return the states of a kind of role, in order of their numbers."""
    return [states[f"{kind}[{index}]"] for index in range(sum(name.startswith(f"{kind}[") for name in states))]


def _params_of_learner(config: Config[Any], spec: Spec, states: States) -> Params:
    prefixes = tuple(f"{name}." for name in build_algorithm(config).acting(spec))
    networks = states["learner[0]"].under("nets").under("networks").arrays
    return Params.of({name: array for name, array in networks.items() if name.startswith(prefixes)})


def _params_of_slices(config: Config[Any], spec: Spec, states: States) -> Params:
    layout = layout_of(build_algorithm(config).acting(spec), spec)
    values = np.concatenate([state.arrays["values"] for state in learning(states, "param_server")])
    return Params(layout, values[: layout.size])


def _by_learner(launch: Callable[..., None]) -> Arrangement:
    return Arrangement(
        launch=launch,
        learns="learner",
        counter="updates",
        # before the shards: one whose snapshot is of later knows every window of which the learner's state speaks
        keeps=("learner", "evaluator"),
        version=lambda states: int(states["learner[0]"].meta["version"]),
        params=_params_of_learner,
    )


ARRANGEMENTS: dict[Topology, Arrangement] = {
    "replay": _by_learner(launch.replay),
    "queue": _by_learner(launch.unrolls),
    "lockstep": _by_learner(launch.unrolls),
    "gradients": Arrangement(
        launch=launch.gradients,
        learns="param_server",
        counter="pushes_applied",
        keeps=("evaluator", "param_server"),  # so no version was evaluated that the slices do not know
        version=lambda states: min(int(state.meta["version"]) for state in learning(states, "param_server")),
        params=_params_of_slices,
    ),
}
