"""Gradients on their way: what a worker gives to its sink, what a slice gets of it, and what is done before the cut."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Versions = tuple[int, ...]
"""Of each slice of the parameters; every one of them only grows. () is older than all."""

Refusal = Literal["", "repeated", "fenced", "stale", "not finite"]
"""Why a slice did not apply a gradient; empty: it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """One gradient over all parameters, as a worker gives it to its sink, which cuts it for the slices."""

    worker: int
    generation: int
    step: int  # counts this generation's gradients
    versions: Versions  # of the parameters that it was computed from
    values: NDArray[np.float32]  # [size], clipped
    norm: float  # of the whole before clipping: if it is not finite, every slice refuses its part
    env_steps: int  # played for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One slice's part of a gradient."""

    worker: int
    generation: int
    step: int
    version: int  # of this slice's parameters that it was computed from
    gradient: NDArray[np.float32]
    norm: float  # as in Gradient
    env_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A slice's answer: its newest parameters, and whether the gradient is in them."""

    version: int
    values: NDArray[np.float32]
    applied: bool
    why: Refusal = ""


class GradientSink(Protocol):
    """Where a worker's gradients go and its parameters come from, however many slices are behind it."""

    def push(self, gradient: Gradient) -> None:
        """Send a gradient; the slices' answers come through `fetch`."""

    def must_wait(self) -> str:
        """Say whom the worker must wait for before it plays on; empty: for nobody."""

    def fetch(self, newer_than: Versions) -> tuple[Versions, NDArray[np.float32]] | None:
        """Return the newest parameters that have come, or None if no slice is newer; `[size]`, perhaps read-only."""


class ValueSource(Protocol):
    """Where all parameters are read together, however many slices hold them."""

    def fetch(self, newer_than: int) -> tuple[int, NDArray[np.float32]] | None:
        """Return `(version, values)`, the version that of the slice furthest behind, or None if that is not newer."""


def clip_factor(norm: float, clip_norm: float) -> float:
    """Return what scales a gradient of this norm down to `clip_norm`, if it is longer; 0: any length will do.

    A norm that is not finite scales nothing, so that whoever applies the gradient still sees what it is.
    """
    return clip_norm / norm if 0.0 < clip_norm < norm and isfinite(norm) else 1.0
