"""An algorithm and networks small enough to be computed by hand, and a way to play them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.copies import Copies
from actors.rollout import Rollout
from starling.algorithms.dqn import Dqn, DqnConfig
from starling.metrics import Meter, no_clock
from starling.params import Params
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Believed, Columns, Outputs, Place, Unroll
from starling.windows import Window

DISCOUNT = 0.9
DQN = Dqn(DqnConfig(dueling=False))


def params_of(version: int) -> Params:
    return Params.of({"scale": np.array([1.0 + version], np.float32)})


def q_of(obs: Array, version: int, actions: int = 3) -> Array:
    """Return values of every action, `[E, A]`, that differ between any two observations and versions."""
    mix = obs.astype(np.float64) @ np.array([0.13, 1.7, 0.31, 0.011])
    q: Array = (1.0 + version) * np.sin(mix[:, None] + np.arange(actions))
    return q


class Sines:
    """Networks whose only parameter is the version that they were loaded with."""

    def __init__(self, actions: int = 3) -> None:
        self._actions = actions
        self._version = -1

    def load(self, params: Params) -> None:
        self._version = int(params.buffer[0]) - 1

    def __call__(self, obs: Array) -> dict[str, Array]:
        return {"q": q_of(obs, self._version, self._actions)}

    def recall(self, obs: Array, state: Columns) -> tuple[dict[str, Array], Columns]:
        return self(obs), {}


class Explorer:
    """Acts greedily or at random, and judges windows by their n-step error."""

    def __init__(self, window: Window | None, judges: bool = True) -> None:
        self._window = window
        self._judges = judges

    @property
    def window(self) -> Window | None:
        return self._window

    def acting(self, spec: Spec) -> Mapping[str, Any]:
        return {}

    def columns(self, spec: Spec) -> Mapping[str, ArraySpec]:
        return {"q": ArraySpec((3,), "float32")}

    def explore(self, place: Place) -> NDArray[np.float32]:
        return np.linspace(0.1, 0.9, place.num_copies, dtype=np.float32)

    def act(self, outputs: Outputs, explore: NDArray[np.float32], rng: np.random.Generator) -> Act:
        q = outputs["q"]
        wild = rng.random(len(q)) < explore
        action = np.where(wild, rng.integers(3, size=len(q)), q.argmax(1))
        taken = q[np.arange(len(q)), action] if self._judges else None
        return Act(action, {"q": q}, taken)

    def greedy(self, outputs: Outputs) -> Array:
        return DQN.greedy(outputs)

    def value(self, outputs: Outputs) -> Array:
        return DQN.value(outputs)

    def priorities(self, windows: Believed) -> Array | None:
        factors = DISCOUNT ** np.arange(len(windows.reward))[:, None]
        total = (factors * windows.reward * windows.valid).sum(0)
        last = windows.value[windows.steps, np.arange(len(windows.steps))]
        alive = ~(windows.terminated & windows.valid).any(0)
        error: Array = abs(total + alive * DISCOUNT**windows.steps * last - windows.taken[0])
        return error


def rollout_of(copies: Copies, window: Window | None, seed: int = 7, judges: bool = True, **kwargs: Any) -> Rollout:
    place = Place(actor=2, num_actors=3, num_copies=copies.num_copies)
    return Rollout(copies, Explorer(window, judges), Sines(), place, np.random.SeedSequence(seed), **kwargs)


def collect(rollout: Rollout, lengths: list[int], version: int = 1) -> list[Unroll]:
    """Play one unroll of each length, each by a version of its own."""
    unrolls = []
    for i, length in enumerate(lengths):
        rollout.load(params_of(version + i))
        unrolls.append(rollout.collect(length, version + i, Meter(no_clock)))
    return unrolls
