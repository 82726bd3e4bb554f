"""Copies of one environment, stepped together, with one meaning of a step whatever happens at an episode's end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from actors.masks import Masks, num_entries
from actors.pool import SeededPool
from actors.spaces import Spaces
from starling.errors import EnvError, check
from starling.types import Array

Vectorization = Literal["auto", "vector_entry_point", "sync"]
ActionMask = Literal["none", "info"]
NO_COPIES = np.empty(0, np.int64)
BOOKKEEPING = frozenset({"final_obs", "final_info", "reset_mask", "elapsed_step", "env_id", "reward"})
"""What vectors report for themselves: no figures of an episode"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvConfig:
    """Which environment, how many copies of it, and what of its reward is learned from."""

    id: str
    """a Gymnasium id, package:id, module:factory, or envpool:task"""
    copies: int = 16
    """copies in each actor, stepped together"""
    kwargs: dict[str, str | int | float | bool] = field(default_factory=dict)
    """what the environment is made with"""
    time_limit: int = 0
    """steps after which an episode is truncated; 0: the environment's own limit"""
    reward_scale: float = 1.0
    """learned reward = clip(scale * reward)"""
    reward_clip: float = 0.0
    """to [-clip, clip]; 0: not at all"""
    vectorization: Vectorization = "auto"
    """auto: the environment's own vector where it has one"""
    action_mask: ActionMask = "none"
    """info: info["action_mask"] of every reset and step says which actions are possible; no others are taken"""

    def __post_init__(self) -> None:
        check(bool(self.id), "env.id must be an environment, got ''")
        check(self.copies >= 1, f"env.copies must be >= 1, got {self.copies}")
        check(self.time_limit >= 0, f"env.time_limit must be >= 0, got {self.time_limit}")
        check(self.reward_scale > 0.0, f"env.reward_scale must be > 0, got {self.reward_scale}")
        check(self.reward_clip >= 0.0, f"env.reward_clip must be >= 0, got {self.reward_clip}")
        known = get_args(Vectorization)
        check(self.vectorization in known, f"env.vectorization must be one of {known}, got {self.vectorization!r}")
        masks = get_args(ActionMask)
        check(self.action_mask in masks, f"env.action_mask must be one of {masks}, got {self.action_mask!r}")

    def learned_reward(self, reward: Array) -> Array:
        """Return the reward as the learner sees it, float32."""
        scaled = np.asarray(reward, np.float32) * np.float32(self.reward_scale)
        return np.clip(scaled, -self.reward_clip, self.reward_clip) if self.reward_clip else scaled


class Step(NamedTuple):
    """What one step of all copies did. The arrays of all copies hold until the next step or reset; keep copies."""

    obs: (
        Array  # [E, ...] what to act on next; after an end a new episode's first, or the last one's before an autoreset
    )
    reward: Array  # [E] as the environment gave it
    terminated: NDArray[np.bool_]  # [E]
    truncated: NDArray[np.bool_]  # [E]
    acted: NDArray[np.bool_]  # [E] False where the copy was reset instead: no transition
    ended: NDArray[np.int64]  # [F] copies whose episode ended with this step
    final_obs: Array  # [F, ...] the observations after their last step; the caller's own
    metrics: Mapping[str, Array]  # [F] numbers that the environment reports with its last step; NaN: not by this copy


class Copies:
    """A Gymnasium vector whose autoreset mode nobody else needs to know.

    NEXT_STEP: the step after an episode's end only resets; its row has `acted` False and nothing is learned from it.
    SAME_STEP: the observation after the last step comes through the info. DISABLED: ended copies are reset at once.
    """

    def __init__(self, vector: VectorEnv[Any, Any, Any], config: EnvConfig) -> None:
        self.config = config
        self.num_copies = int(vector.num_envs)
        self.spaces = Spaces.of(config.id, vector.single_observation_space, vector.single_action_space)
        self.spec = self.spaces.spec(config.id, config.time_limit or own_time_limit(vector))
        self._masks: Masks | None = None
        if config.action_mask == "info":
            self.spec = replace(self.spec, mask=num_entries(self.spec))
            self._masks = Masks(self.spec, self.num_copies)
        self._vector = vector
        self._mode = autoreset_mode(vector, config.id)
        self._everyone, self._nobody = np.ones(self.num_copies, np.bool_), np.zeros(self.num_copies, np.bool_)
        self._no_final = self.spec.obs.zeros(0)
        self._resetting: NDArray[np.bool_] | None = None  # copies whose next step is only a reset

    @property
    def vector(self) -> VectorEnv[Any, Any, Any]:
        """The Gymnasium vector itself: what a benchmark compares the copies with."""
        return self._vector

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """Which actions are possible next, `[E, M]`; None where every action always is."""
        return None if self._masks is None else self._masks.now

    def reset(self, seeds: Sequence[int]) -> Array:
        """Begin a new episode in every copy and return the first observations, `[E, ...]`.

        Vectors that take one seed for all copies get one that is made of all of `seeds`.
        """
        assert len(seeds) == self.num_copies, "one seed for each copy"
        self._resetting = None
        each = isinstance(self._vector.unwrapped, SyncVectorEnv | AsyncVectorEnv | SeededPool)
        seed: Any = list(seeds) if each else seed_numbers(np.random.SeedSequence(list(seeds)), 1)[0]
        raw, info = self._call(self._vector.reset, seed=seed)
        if self._masks is not None:
            self._masks.read(info, self._everyone, self._nobody)
        return self._read(raw)

    def step(self, action: Array) -> Step:
        """Step every copy by its action; those that a vector resets in this step ignore theirs."""
        raw, reward, terminated, truncated, info = self._call(self._vector.step, self.spaces.write(action))
        acted = self._everyone
        if self._resetting is not None:
            acted, self._resetting = ~self._resetting, None
            reward, terminated, truncated = reward * acted, terminated & acted, truncated & acted
        obs = self.spaces.read(raw)
        ends = terminated | truncated
        if self._masks is not None:  # after an end in the same step, the info is of the next episode
            resetting = self._nobody if self._mode is AutoresetMode.SAME_STEP else ends
            self._masks.read(info, self._everyone, resetting)
        if not np.count_nonzero(ends):
            return Step(obs, reward, terminated, truncated, acted, NO_COPIES, self._no_final, {})
        ended = np.flatnonzero(ends)
        if self._mode is AutoresetMode.SAME_STEP:
            final = self.spaces.read(np.stack([info["final_obs"][i] for i in ended]))
            info = info.get("final_info", {})  # the rest of the info is of the next episode
        else:
            final = obs[ended]  # copied before the reset: a vector may reuse its buffer
        step = Step(obs, reward, terminated, truncated, acted, ended, final, episode_metrics(info, ended))
        if self._mode is AutoresetMode.NEXT_STEP:
            self._resetting = ends
        elif self._mode is AutoresetMode.DISABLED:
            return self._reset_ended(step, ends)
        return step

    def close(self) -> None:
        """Let go of what the environment holds."""
        self._vector.close()

    def _reset_ended(self, step: Step, ends: NDArray[np.bool_]) -> Step:
        # what the step returned may lie in buffers that the reset clears
        reward, terminated, truncated = step.reward.copy(), step.terminated.copy(), step.truncated.copy()
        raw, info = self._call(self._vector.reset, options={"reset_mask": ends})
        if self._masks is not None:
            self._masks.read(info, ends, self._nobody)
        return step._replace(reward=reward, terminated=terminated, truncated=truncated, obs=self.spaces.read(raw))

    def _read(self, raw: Any) -> Array:
        obs = self.spaces.read(raw)
        expected = (self.num_copies, *self.spec.obs.shape)
        if obs.shape != expected:
            raise EnvError(
                f"environment {self.config.id} promised observations of shape {expected}, but gave {obs.shape}"
            )
        return obs

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise EnvError(f"environment {self.config.id} failed in {method.__name__}: {in_a_line(error)}") from error


def autoreset_mode(vector: VectorEnv[Any, Any, Any], name: str) -> AutoresetMode:
    """Return what a vector does at an episode's end; a vector that does not say so can't be used without guessing."""
    # the instance first: some vectors write their mode into the metadata of their class
    mode = getattr(vector.unwrapped, "autoreset_mode", None) or vector.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise EnvError(
            f"environment {name} must say in metadata['autoreset_mode'] how its vector resets, got {mode!r}; "
            "set env.vectorization to sync to step single copies instead"
        ) from None


def episode_metrics(info: Mapping[str, Any], ended: NDArray[np.int64]) -> dict[str, Array]:
    """Return the scalar numbers in a vector's info for the copies that ended, NaN where a copy gave none."""
    metrics = {}
    for key, values in info.items():
        if key.startswith("_") or key in BOOKKEEPING or not isinstance(values, np.ndarray):
            continue
        if values.ndim != 1 or values.dtype.kind not in "biuf":
            continue
        given = info.get(f"_{key}")
        there = True if given is None else given[ended]
        metrics[key] = np.where(there, values[ended], np.nan).astype(np.float32)
    return metrics


def require_finite(env: str, **arrays: Any) -> None:
    """Refuse an environment's numbers that are NaN or infinite, by name."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            what = name.replace("_", " ")
            raise EnvError(f"environment {env} gave {what}s that are not finite; nothing can be learned from them")


def seed_numbers(seed: np.random.SeedSequence, count: int) -> list[int]:
    """Return seeds that every kind of environment takes: below 2^30, as some count on from them in an int32."""
    return [int(word >> 2) for word in seed.generate_state(count)]


def in_a_line(error: BaseException) -> str:
    """Return an exception's type and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def own_time_limit(vector: VectorEnv[Any, Any, Any]) -> int | None:
    """Return after how many steps a vector truncates by itself, where it says so."""
    spec = vector.envs[0].spec if isinstance(vector, SyncVectorEnv) else vector.spec
    if spec is None:
        return None
    limit = spec.kwargs.get("max_episode_steps", spec.max_episode_steps)
    return int(limit) if limit else None
