"""The evaluator: plays the same held-out episodes greedily with one version of the parameters after another."""

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.copies import Copies, require_finite, seed_numbers
from starling.errors import EnvError, check
from starling.metrics import Clock, Meter
from starling.networks.forward import Forward, Recall
from starling.params import Params
from starling.state import State
from starling.types import Acting, ParamSource, Progress

HELD_OUT = 0xE7A1  # keeps the evaluation's seeds apart from every other use of the same number


MAX_UNTOLD = 64  # evaluations that wait to be asked for; of a supervisor that is gone, the newest stay


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorConfig:
    """On what a version of the parameters is judged, and how often."""

    episodes: int = 100
    """held-out episodes for each version"""
    copies: int = 50
    """episodes played side by side"""
    every: int = 10
    """versions from one evaluation to the next"""
    seed: int = 0
    """chooses the held-out episodes, whatever the run's seed is"""
    max_steps: int = 100_000
    """steps after which an episode that has not ended is an error"""

    def __post_init__(self) -> None:
        for name in ("episodes", "copies", "every", "max_steps"):
            check(getattr(self, name) >= 1, f"evaluator.{name} must be >= 1, got {getattr(self, name)}")
        check(self.seed >= 0, f"evaluator.seed must be >= 0, got {self.seed}")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one version of the parameters is worth without exploration."""

    version: int
    returns: NDArray[np.float64]  # [episodes] of the environment's own reward
    lengths: NDArray[np.int64]  # [episodes]
    params: Params | None = None  # of a version better than all before

    @property
    def mean(self) -> float:
        """Mean return: what "solved" is about."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation over episodes."""
        return float(self.returns.std())


class Evaluator:
    """Repeats: fetch the newest parameters, play every held-out episode once, keep the result.

    Each copy plays exactly one episode at a time, so short ones count no more than long ones. It has an environment of
    its own and shares no random numbers with training. Called from one thread, `stats` and `take` excepted.
    """

    def __init__(
        self,
        config: EvaluatorConfig,
        copies: Copies,
        acting: Acting,
        forward: Forward,
        params: ParamSource,
        clock: Clock,
    ) -> None:
        self._config = config
        self._copies = copies
        self._acting = acting
        self._forward = forward
        self._params = params
        self._meter = Meter(clock, "waiting_params")
        self._version = 0  # evaluated last
        self._best_mean = -inf
        self._done: deque[Evaluation] = deque(maxlen=MAX_UNTOLD)

    def step(self) -> Progress:
        """Evaluate one version, or report that none is due."""
        due = self._version + self._config.every if self._version else 1
        fresh = self._params.fetch(newer_than=due - 1)
        if fresh is None:
            self._meter.enter("waiting_params")
            return Progress(waits=f"evaluator waits for version {due} of the parameters")
        evaluation = self.evaluate(*fresh)
        self._done.append(evaluation)
        self._meter.enter("idle")
        return Progress(work={"evaluations": 1, "env_steps": int(evaluation.lengths.sum())})

    def take(self) -> list[Evaluation]:
        """Return the evaluations that were finished since the last call."""
        return [self._done.popleft() for _ in range(len(self._done))]

    def evaluate(self, version: int, params: Params) -> Evaluation:
        """Play the held-out episodes with these parameters."""
        self._version = version
        self._forward.load(params)
        chunks = [self._play(first) for first in range(0, self._config.episodes, self._copies.num_copies)]
        returns, lengths = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        require_finite(self._copies.config.id, reward=returns)
        best = float(returns.mean()) > self._best_mean
        self._best_mean = max(self._best_mean, float(returns.mean()))
        evaluation = Evaluation(version, returns, lengths, params if best else None)
        self._meter.count("evaluations")
        self._meter.count("env_steps", int(lengths.sum()))
        self._meter.gauge("version", version)
        self._meter.gauge("return_mean", evaluation.mean)
        return evaluation

    def state(self) -> State:
        """Return how far the evaluations are."""
        return State(meta={"version": self._version, "best_mean": self._best_mean})

    def restore(self, state: State) -> None:
        """Go on with the evaluations of another."""
        self._version, self._best_mean = state.meta["version"], state.meta["best_mean"]

    def stats(self) -> dict[str, Any]:
        """Return work, time shares and the last evaluation's mean."""
        return self._meter.snapshot()

    def close(self) -> None:
        """Let go of the environment."""
        self._copies.close()

    def _play(self, first: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Play episodes from number `first` on, one in each copy; copies that have no episode left are not counted."""
        copies, config = self._copies, self._config
        count = min(copies.num_copies, config.episodes - first)
        playing = np.arange(copies.num_copies) < count
        returns, lengths = np.zeros(len(playing)), np.zeros(len(playing), np.int64)
        recall = Recall(self._forward, self._acting.acting(copies.spec), copies.num_copies)
        obs = copies.reset([episode_seed(config.seed, first + i) for i in range(copies.num_copies)])
        for _ in range(config.max_steps):
            self._meter.enter("acting")
            outputs = recall(obs)
            action = self._acting.greedy(outputs if copies.mask is None else {**outputs, "mask": copies.mask})
            self._meter.enter("stepping")
            step = copies.step(action)
            returns += np.where(playing, step.reward, 0.0)
            lengths += playing  # a copy's first episode has no autoreset rows in it
            playing[step.ended] = False
            obs = step.obs
            if not playing.any():
                return returns[:count], lengths[:count]
        raise EnvError(
            f"environment {copies.config.id} did not end {np.count_nonzero(playing)} of {count} held-out episodes "
            f"within {config.max_steps} steps; set env.time_limit"
        )


def episode_seed(seed: int, episode: int) -> int:
    """Return the seed of a held-out episode: it depends on nothing else."""
    return seed_numbers(np.random.SeedSequence(seed, spawn_key=(HELD_OUT, episode)), 1)[0]
