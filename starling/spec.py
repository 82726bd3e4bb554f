"""What an environment's observations and actions look like, measured once and given to every role."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype of one entry of a column."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of one entry."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def zeros(self, *lead: int) -> NDArray[Any]:
        """Return zeros of this spec with leading axes."""
        return np.zeros((*lead, *self.shape), self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """An environment as networks, actors and shards need to know it.

    `classes` is set for observations that are integers (Discrete, MultiDiscrete, MultiBinary): how many values each
    has; networks one-hot encode them. `num_actions` is set for discrete actions, `choices` where several are taken at
    once: how many values each has; `low` and `high` for boxes. `mask` is the number of entries of a mask of possible
    actions, 0 where every action is always possible.
    """

    env: str
    obs: ArraySpec
    action: ArraySpec
    classes: tuple[int, ...] = ()
    num_actions: int = 0
    choices: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    max_episode_steps: int | None = None
    mask: int = 0

    @property
    def features(self) -> int:
        """Length of an observation as a flat vector of inputs."""
        return sum(self.classes) if self.classes else prod(self.obs.shape)


def measured(spec: Spec) -> bool:
    """Tell observations that are numbers of any size from integers, which become one-hot, and from bytes."""
    return not spec.classes and spec.obs.dtype != "uint8"
