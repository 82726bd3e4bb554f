"""Environments that nobody needs to play: what they look like is enough."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from starling.types import Array


class Still(gymnasium.Env[Array, int]):
    """Shows the same for ever."""

    observation_space: Any = Box(-1e9, 1e9, (2,), np.float32)
    action_space: Any = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), 0.0, False, False, {}


class Screen(Still):
    """Shows a small picture."""

    observation_space = Box(0, 255, (6, 4), np.uint8)


class More(Still):
    """Offers an action more."""

    action_space = Discrete(3)
