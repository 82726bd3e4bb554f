"""Gymnasium's spaces as a Spec, and the translation between an environment's arrays and ours."""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from starling.errors import EnvError
from starling.spec import ArraySpec, Spec
from starling.types import Array


class Observed(NamedTuple):
    """An observation space in our words; `offset` is its smallest value where that is not 0."""

    spec: ArraySpec
    classes: tuple[int, ...] = ()
    offset: Array | None = None


def observed(env: str, space: Space[Any]) -> Observed:
    """Describe an observation space: bytes stay bytes, other boxes become float32, integers count from 0."""
    match space:
        case Box():
            return Observed(ArraySpec(space.shape, "uint8" if space.dtype == np.uint8 else "float32"))
        case Discrete():
            return Observed(ArraySpec((), "int64"), (int(space.n),), _offset(np.asarray(space.start)))
        case MultiDiscrete():
            classes = tuple(int(n) for n in space.nvec.flat)
            return Observed(ArraySpec(space.shape, "int64"), classes, _offset(np.asarray(space.start)))
        case MultiBinary():
            return Observed(ArraySpec(space.shape, "int8"), (2,) * prod(space.shape))
    raise EnvError(
        f"environment {env} has observations of the space {type(space).__name__}, which networks can't read; return it "
        "through gymnasium.wrappers.FlattenObservation from a factory of your own and pass that as module:factory"
    )


def _offset(start: Array) -> Array | None:
    return start if start.any() else None


@dataclass(frozen=True, slots=True)
class Spaces:
    """Both spaces of an environment: what its Spec says of them, and how arrays are translated."""

    obs: Observed
    action: Discrete | MultiDiscrete | Box

    @staticmethod
    def of(env: str, obs: Space[Any], action: Space[Any]) -> "Spaces":
        """Describe a single copy's spaces, or say which one is not supported and what to do."""
        if not isinstance(action, Discrete | MultiDiscrete | Box):
            raise EnvError(
                f"environment {env} has actions of the space {type(action).__name__}, but only Discrete, "
                "MultiDiscrete and Box can be chosen; wrap it in a gymnasium.ActionWrapper that offers one of them and "
                "pass that as module:factory"
            )
        return Spaces(observed(env, obs), action)

    def spec(self, env: str, max_episode_steps: int | None) -> Spec:
        """Return the Spec that every role is given."""
        obs, classes, _ = self.obs
        spec = partial(Spec, env=env, obs=obs, classes=classes, max_episode_steps=max_episode_steps)
        match self.action:
            case Discrete() as space:
                return spec(action=ArraySpec((), "int64"), num_actions=int(space.n))
            case MultiDiscrete() as space:
                choices = tuple(int(n) for n in space.nvec.flat)
                return spec(action=ArraySpec((len(choices),), "int64"), choices=choices)
            case space:
                low, high = (tuple(float(x) for x in bound.flat) for bound in (space.low, space.high))
                return spec(action=ArraySpec((prod(space.shape),), "float32"), low=low, high=high)

    def read(self, raw: Any) -> Array:
        """Return observations as ours; the same memory where nothing has to change."""
        if self.obs.offset is not None:
            raw = raw - self.obs.offset
        array: Array = np.asarray(raw, self.obs.spec.dtype)
        return array

    def write_obs(self, obs: Array) -> Array:
        """Return observations as the environment gave them: what `read` takes."""
        return obs if self.obs.offset is None else obs + self.obs.offset

    def read_action(self, action: Array) -> Array:
        """Return the environment's actions as ours: what `write` takes."""
        space = self.action
        if isinstance(space, Box):
            return shrunk(action, space.low, space.high)
        return np.asarray(action, np.int64) - space.start

    def write(self, action: Array) -> Array:
        """Return actions as the environment wants them: [-1, 1] stretched to a box, integers counted from its start."""
        space = self.action
        if isinstance(space, Box):
            action = stretched(action.reshape(-1, *space.shape), space.low, space.high)
        elif isinstance(space, MultiDiscrete):
            action = action.reshape(-1, *space.shape) + space.start
        elif space.start:
            action = action + space.start
        return action.astype(space.dtype, copy=False)


def stretched(action: Array, low: Array, high: Array) -> Array:
    """Map [-1, 1] to [low, high] and what lies beyond to the bounds; where a bound is infinite, only clip."""
    bounded = np.isfinite(low) & np.isfinite(high)
    with np.errstate(invalid="ignore"):  # infinite bounds, whose result is not used
        inside = low + (np.clip(action, -1.0, 1.0) + 1.0) * 0.5 * (high - low)
    return np.where(bounded, inside, np.clip(action, low, high))


def shrunk(action: Array, low: Array, high: Array) -> Array:
    """Map [low, high] to [-1, 1], as `stretched` maps it back; where a bound is infinite, nothing changes."""
    bounded = np.isfinite(low) & np.isfinite(high)
    width = np.where(bounded & (high > low), high - low, 1.0)
    with np.errstate(invalid="ignore"):  # infinite bounds, whose result is not used
        inside = np.clip((action - low) / width * 2.0 - 1.0, -1.0, 1.0)
    return np.asarray(np.where(bounded, inside, action), np.float32)
