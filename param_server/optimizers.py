"""Optimizers over flat vectors: elementwise and in place, so that a vector in slices moves exactly as a whole one."""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from param_server.config import SliceConfig
from starling.state import State, require_same

Vector = NDArray[np.float32]

BLOCK = 1 << 16  # values: a block's vectors and the scratch stay in a core's cache from one operation to the next


class Block(NamedTuple):
    """Some consecutive values, and what belongs to them."""

    values: Vector
    gradient: Vector
    moments: tuple[Vector, ...]
    scratch: Vector


Move = Callable[[SliceConfig, Block, float, int], None]
"""Moves a block at a learning rate; the last argument counts the optimizer's steps from 1."""


class Kind(NamedTuple):
    """What an optimizer remembers of each value, and how it moves it."""

    moments: tuple[str, ...]
    move: Move


class Optimizer:
    """Moves one vector, step by step, and holds what it has gathered of the gradients.

    Each value's way depends on its own gradients alone, and each operation on it is rounded by itself: nothing is
    fused or reordered, so that where a vector is cut changes no bit. Works in the vector's own precision.
    """

    def __init__(self, config: SliceConfig, values: Vector) -> None:
        self._config = config
        self._values = values
        self._kind = KINDS[config.optimizer]
        self._moments = tuple(np.zeros_like(values) for _ in self._kind.moments)
        self._scratch = np.empty(min(BLOCK, len(values)), values.dtype)
        self._steps = 0

    def step(self, gradient: Vector, rate: float) -> None:
        """Move the values against the gradient, which stays as it is."""
        self._steps += 1
        for start in range(0, len(self._values), BLOCK):
            span = slice(start, start + BLOCK)
            values, moments = self._values[span], tuple(moment[span] for moment in self._moments)
            block = Block(values, gradient[span], moments, self._scratch[: len(values)])
            self._kind.move(self._config, block, rate, self._steps)

    def state(self) -> State:
        """Return what the optimizer has gathered."""
        arrays = {name: moment.copy() for name, moment in self._named().items()}
        return State(arrays, {"kind": self._config.optimizer, "steps": self._steps})

    def restore(self, state: State) -> None:
        """Take over what another of the same kind has gathered."""
        require_same("optimizer", state.meta["kind"], self._config.optimizer)
        for name, moment in self._named().items():
            moment[...] = state.arrays[name]
        self._steps = state.meta["steps"]

    def _named(self) -> Mapping[str, Vector]:
        return dict(zip(self._kind.moments, self._moments, strict=True))


def a3c_rmsprop(config: SliceConfig, block: Block, rate: float, step: int) -> None:
    """Move by g / sqrt(E[g^2] + eps): A3C's shared RMSProp (Mnih et al., 2016, equation 8)."""
    (square,) = block.moments
    _follow_square(square, block, config.decay)
    scratch = np.add(square, config.epsilon, out=block.scratch)
    np.sqrt(scratch, out=scratch)
    np.divide(block.gradient, scratch, out=scratch)
    _move(block, scratch, rate)


def rmsprop(config: SliceConfig, block: Block, rate: float, step: int) -> None:
    """Move by g / (sqrt(E[g^2]) + eps)."""
    (square,) = block.moments
    _follow_square(square, block, config.decay)
    scratch = np.sqrt(square, out=block.scratch)
    scratch += config.epsilon
    np.divide(block.gradient, scratch, out=scratch)
    _move(block, scratch, rate)


def adam(config: SliceConfig, block: Block, rate: float, step: int) -> None:
    """Move by E[g] / (sqrt(E[g^2]) + eps), both means corrected for their start at zero (Kingma and Ba, 2015)."""
    mean, square = block.moments
    scratch = np.subtract(block.gradient, mean, out=block.scratch)
    scratch *= 1.0 - config.beta_1
    mean += scratch
    _follow_square(square, block, config.beta_2)
    root = sqrt(1.0 - config.beta_2**step)
    np.sqrt(square, out=scratch)
    scratch += config.epsilon * root  # both sides of the fraction times `root` save a pass
    np.divide(mean, scratch, out=scratch)
    _move(block, scratch, rate * root / (1.0 - config.beta_1**step))


def sgd(config: SliceConfig, block: Block, rate: float, step: int) -> None:
    """Move by the velocity: the gradient and `momentum` of the velocity before."""
    (velocity,) = block.moments
    velocity *= config.momentum
    velocity += block.gradient
    _move(block, velocity, rate)


def _follow_square(square: Vector, block: Block, decay: float) -> None:
    scratch = np.multiply(block.gradient, block.gradient, out=block.scratch)
    scratch *= 1.0 - decay
    square *= decay
    square += scratch


def _move(block: Block, direction: Vector, rate: float) -> None:
    values = block.values
    values -= np.multiply(direction, rate, out=block.scratch)


KINDS: dict[str, Kind] = {
    "a3c_rmsprop": Kind(("square",), a3c_rmsprop),
    "rmsprop": Kind(("square",), rmsprop),
    "adam": Kind(("mean", "square"), adam),
    "sgd": Kind(("velocity",), sgd),
}
