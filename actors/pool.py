"""EnvPool behind the interface of Gymnasium's vectors."""

from collections.abc import Callable
from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv


class SeededPool(VectorEnv[Any, Any, Any]):
    """An EnvPool that can be seeded again: it takes its seeds only while it is made, so each reset makes a new one."""

    def __init__(self, make: Callable[[list[int]], Any], num_copies: int) -> None:
        self._make = make
        self._pool = make(list(range(num_copies)))
        self.num_envs = num_copies
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = self._pool.single_observation_space
        self.single_action_space = self._pool.single_action_space

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Make the pool anew from a seed for each copy."""
        self._pool.close()
        self._pool = self._make(seed)
        raw, info = self._pool.reset()
        return raw, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every copy; one whose episode ended is reset instead."""
        raw, reward, terminated, truncated, info = self._pool.step(actions)
        return raw, reward, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the pool's threads."""
        self._pool.close()
