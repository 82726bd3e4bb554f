"""An environment whose observations say which copy, episode and step they are of, and what was done before."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv

from starling.types import Array

MAX_LENGTH = 6


class Counting(gymnasium.Env[Array, int]):
    """Episodes of 1 to 6 steps, as the seed has it, that end by termination, by truncation, or by both.

    With `reuse` every observation is the same array, written to again: what an environment may do.
    """

    observation_space = Box(-np.inf, np.inf, (4,), np.float64)
    action_space = Discrete(3, start=5)

    def __init__(self, reuse: bool = True, endless: bool = False) -> None:
        self._obs = np.zeros(4)
        self._reuse = reuse
        self._endless = endless

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._obs[:] = seed % 1000, -1.0, 0.0, 0.0
        self._obs[1:] = self._obs[1] + 1.0, 0.0, 0.0
        self._length = int(self.np_random.integers(1, MAX_LENGTH + 1))
        self._terminates, self._truncates = ((True, False), (False, True), (True, True))[self.np_random.integers(3)]
        return self._observe(), {"fresh": 1.0}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action of this environment"
        self._obs[2] += 1.0
        self._obs[3] = 10.0 * self._obs[3] + action - 5
        over = self._obs[2] >= self._length and not self._endless
        info: dict[str, Any] = {"progress": self._obs[2]}
        if over:
            info |= {"goal": self._terminates, "name": "done"}
        reward = 100.0 * self._obs[1] + 10.0 * self._obs[2] + action
        return self._observe(), reward, over and self._terminates, over and self._truncates, info

    def _observe(self) -> Array:
        return self._obs if self._reuse else self._obs.copy()


class CountingVector(VectorEnv[Any, Any, Any]):
    """The same as a vector written by hand, in buffers that every call overwrites."""

    def __init__(self, num_envs: int, seeds: list[int], mode: AutoresetMode, max_episode_steps: int = 0) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space = Counting.observation_space
        self.single_action_space = Counting.action_space
        self.max_episode_steps = max_episode_steps
        self._copies = [Counting() for _ in range(num_envs)]
        self._seeds = seeds
        self._obs = np.zeros((num_envs, 4))
        self._reward = np.zeros(num_envs)
        self._ends = np.zeros((2, num_envs), np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        for i, copy in enumerate(self._copies):
            self._obs[i], _ = copy.reset(seed=self._seeds[i])
        self._ends[:] = False
        return self._obs, {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        over = self._ends.any(0)
        final: Array = np.full(self.num_envs, None, object)
        last: dict[str, Any] = {}
        mode = self.metadata["autoreset_mode"]
        for i, copy in enumerate(self._copies):
            if over[i] and mode is AutoresetMode.NEXT_STEP:
                self._obs[i], _ = copy.reset()
                # a vector that is careless about the rows of a reset: nobody may read them
                self._reward[i], self._ends[:, i] = 99.0, False
                continue
            self._obs[i], self._reward[i], self._ends[0, i], self._ends[1, i], info = copy.step(int(actions[i]))
            self._add_info(last, info, i)
            if self._ends[:, i].any() and mode is AutoresetMode.SAME_STEP:
                final[i] = self._obs[i].copy()
                self._obs[i], _ = copy.reset()
        infos = {"final_obs": final, "final_info": last} if mode is AutoresetMode.SAME_STEP else last
        return self._obs, self._reward, self._ends[0], self._ends[1], infos
