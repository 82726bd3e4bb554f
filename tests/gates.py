"""An environment in which most actions are impossible, most of the time, and which says so."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv

from starling.types import Array

GATES = 4
WHEELS = (2, 3)


def possible(obs: Array) -> Array:
    """Return which gates are open where an observation was made."""
    at = int(obs[1]) * 3 + int(obs[2])
    return np.array([(at + i) % 3 == 0 or i == at % GATES for i in range(GATES)])


def possible_wheels(obs: Array) -> Array:
    """Return the same of two wheels, one behind the other."""
    at = int(obs[1]) + int(obs[2])
    return np.array([at % 2 == 0, True, at % 3 == 0, at % 3 == 1, at % 3 != 1])


class Gates(gymnasium.Env[Array, Any]):
    """Episodes of 1 to 5 steps that end in either way; observations say which seed, episode and step they are of.

    Through a closed gate nobody goes: it is an error. Behind an end none is open. Open gates are worth their number.
    """

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, wheels: bool = False, walled: bool = False, silent: bool = False) -> None:
        self.action_space = MultiDiscrete(WHEELS) if wheels else Discrete(GATES, start=2)
        self._wheels, self._walled, self._silent = wheels, walled, silent
        self._obs = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._obs[:2] = seed % 1000, -1.0
        self._obs[1:] = self._obs[1] + 1.0, 0.0
        self._length = int(self.np_random.integers(1, 6))
        self._terminates = bool(self.np_random.integers(2))
        return self._obs.copy(), self._info(False)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        if self._wheels:
            open_ = bool(possible_wheels(self._obs)[[action[0], WHEELS[0] + action[1]]].all())
        else:
            open_ = bool(possible(self._obs)[action - 2])
        if not open_:
            raise ValueError(f"{action!r} is closed at {self._obs}")
        self._obs[2] += 1.0
        over = self._obs[2] >= self._length
        ends = over and self._terminates, over and not self._terminates
        return self._obs.copy(), float(np.sum(action)), *ends, self._info(over)

    def _info(self, over: bool) -> dict[str, Any]:
        open_ = possible_wheels(self._obs) if self._wheels else possible(self._obs)
        if self._silent:
            return {}
        return {"action_mask": np.zeros_like(open_) if over or self._walled else open_}


class GatesVector(VectorEnv[Any, Any, Any]):
    """The same as a vector written by hand, whose mask is one array that every call overwrites."""

    def __init__(self, num_envs: int, seeds: list[int], mode: AutoresetMode) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": mode}
        self._copies = [Gates() for _ in range(num_envs)]
        self.single_observation_space = Gates.observation_space
        self.single_action_space = self._copies[0].action_space
        self._seeds = seeds
        self._mask = np.zeros((num_envs, GATES), np.int8)
        self._over = np.zeros(num_envs, np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        self._over[:] = False
        return np.stack([self._reset(i, self._seeds[i]) for i in range(self.num_envs)]), {"action_mask": self._mask}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        obs, reward, ends = np.zeros((self.num_envs, 3), np.float32), np.zeros(self.num_envs), []
        final: Array = np.full(self.num_envs, None, object)
        for i, copy in enumerate(self._copies):
            if self._over[i] and self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
                obs[i], self._over[i] = self._reset(i), False
                ends.append((False, False))
                continue
            obs[i], reward[i], *over, info = copy.step(actions[i])
            self._mask[i], self._over[i] = info["action_mask"], any(over)
            ends.append(tuple(over))
            if any(over) and self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
                final[i], obs[i] = obs[i].copy(), self._reset(i)
        info = {"action_mask": self._mask, "final_obs": final}
        return obs, reward, *np.array(ends).T, info

    def _reset(self, i: int, seed: int | None = None) -> Array:
        obs, info = self._copies[i].reset(seed=seed)
        self._mask[i] = info["action_mask"]
        return obs
