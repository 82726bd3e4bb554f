"""Plain copies: single environments that are stepped one after the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate

from starling.types import Array


class QuickDiscrete(Discrete):
    """Gymnasium's Discrete, which sees sooner that one of numpy's integers is in it.

    Its environments ask at every step: for a third of CartPole's time (docs/performance.md).
    """

    def contains(self, x: Any) -> bool:
        """Say whether this is one of the space's numbers."""
        if type(x) is np.int64 and self.dtype == np.int64:
            return bool(self.start <= x <= self.start + (self.n - 1))  # the last one fits its type
        return super().contains(x)


class PlainCopies(SyncVectorEnv):
    """Gymnasium's SyncVectorEnv in the mode DISABLED, for observations that are one array each.

    It does less beside the environments' own steps: no mode is compared and no empty info merged for every copy, and
    a reset of a few copies leaves the observations of the others alone (docs/performance.md).
    """

    def __init__(self, makers: Sequence[Any]) -> None:
        # DISABLED, not SAME_STEP: that one passes the last observation on by reference, and an environment that writes
        # into its own array while resetting would change it. Nothing is wasted on autoreset rows either.
        super().__init__(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        for env in self.envs:
            space = env.unwrapped.action_space
            if type(space) is Discrete:
                space.__class__ = QuickDiscrete  # the same object: who holds it keeps its numbers and its generator

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset every copy or, with `reset_mask` among the options, those that it names."""
        if not options or "reset_mask" not in options:
            return super().reset(seed=seed, options=options)
        others = {name: value for name, value in options.items() if name != "reset_mask"}
        infos: dict[str, Any] = {}
        for copy in options["reset_mask"].nonzero()[0].tolist():
            self._observations[copy], info = self.envs[copy].reset(options=others)
            infos = self._add_info(infos, info, copy)
        return self._observations, infos

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Step every copy by its action; whoever steps resets those that ended."""
        obs, rewards, terminated, truncated = self._observations, self._rewards, self._terminations, self._truncations
        infos: dict[str, Any] = {}
        for copy, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            obs[copy], rewards[copy], terminated[copy], truncated[copy], info = env.step(action)
            if info:
                infos = self._add_info(infos, info, copy)
        return obs, rewards.copy(), terminated.copy(), truncated.copy(), infos
