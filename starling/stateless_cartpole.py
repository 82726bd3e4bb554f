"""CartPole whose speeds are hidden: what to do can't be seen from one observation, so a policy has to remember."""

from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

SHOWN = [0, 2]  # where the cart is and how the pole leans; 1 and 3 are how fast they change


class StatelessCartPole(CartPoleVectorEnv):
    """CartPole-v1, all copies stepped at once, that shows positions only."""

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 500, render_mode: str | None = None) -> None:
        super().__init__(num_envs, max_episode_steps, render_mode)
        full = self.single_observation_space
        assert isinstance(full, Box)
        self.single_observation_space = Box(full.low[SHOWN], full.high[SHOWN], dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a new episode in every copy."""
        obs, info = super().reset(seed=seed, options=options)
        return obs[:, SHOWN], info

    def step(
        self, action: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every copy."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs[:, SHOWN], reward, terminated, truncated, info
