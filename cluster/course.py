"""The course of a run, the same for every runtime: what is reported, which version is best, and when it is over."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actors.evaluator import Evaluation
from cluster.config import GoalConfig
from cluster.report import CheckpointDue, EpisodesEnded, EvaluationDone, Event, Noted, Outcome, Sample
from starling.metrics import Clock
from starling.params import Params

SAMPLE_EVERY_S = 1.0
Reason = Literal["goal", "budget", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a run had done before its supervisor was replaced."""

    env_steps: int = 0
    updates: int = 0
    elapsed_s: float = 0.0
    best_mean: float | None = None


class Course:
    """Turns what roles tell into events, and judges the run by its evaluations and its budgets.

    The clock is for reports, and for the one budget that is asked for in minutes.
    """

    def __init__(
        self,
        goal: GoalConfig,
        report: Callable[[Event], None],
        clock: Clock,
        past: Past,
        launched_at: float | None = None,
    ) -> None:
        self._goal = goal
        self._report = report
        self._clock = clock
        self._past = past
        self._sampled_at = clock()
        self._launched_at = self._sampled_at if launched_at is None else launched_at
        self._began: float | None = None
        self.env_steps, self.updates = past.env_steps, past.updates
        self.best_mean = past.best_mean

    def advance(self, env_steps: int, updates: int) -> None:
        """Set the run's two clocks; training begins with the first step of an environment."""
        if self._began is None and env_steps:
            self._began = self._clock()
            self.note("began", start_s=round(self._began - self._launched_at, 3))
        self.env_steps, self.updates = env_steps + self._past.env_steps, updates + self._past.updates

    def hear(self, actor: int, news: Iterable[Any]) -> None:
        """Take what a loop role told: evaluations, or the episodes that ended with actor number `actor`."""
        for item in news:
            if isinstance(item, Evaluation):
                self._judge(item)
            elif len(item["return"]):
                self._report(
                    EpisodesEnded(
                        elapsed_s=self.elapsed_s,
                        env_steps=self.env_steps,
                        actor=actor,
                        returns=item["return"].tolist(),
                        lengths=item["length"].tolist(),
                    )
                )

    def note(self, what: str, **facts: Any) -> None:
        """Report something that happens rarely."""
        self._report(Noted(elapsed_s=self.elapsed_s, what=what, facts=facts))

    def sample(self, roles: Callable[[], Mapping[str, Mapping[str, Any]]], now: bool = False) -> None:
        """Report all roles' counters once a second, or at once."""
        if now or self._clock() - self._sampled_at >= SAMPLE_EVERY_S:
            self._sampled_at = self._clock()
            self._report(Sample(**self._at(), roles=roles()))

    def over(self, stopped: bool) -> Reason | None:
        """Say why the run is over, or None while it is not."""
        goal = self._goal
        if goal.return_mean is not None and self.best_mean is not None and self.best_mean >= goal.return_mean:
            return "goal"
        if stopped:
            return "interrupted"
        late = goal.max_minutes is not None and self.elapsed_s >= goal.max_minutes * 60.0
        return "budget" if late or self.env_steps >= goal.total_steps else None

    def end(self, reason: Reason, version: int, params: Params | None) -> Outcome:
        """Keep the last parameters, if there are any, and say how the run ended."""
        if params is not None:
            self._report(CheckpointDue(**self._at(), version=version, params=params, best=self.best_mean is None))
        return Outcome(
            reason=reason,
            env_steps=self.env_steps,
            updates=self.updates,
            train_s=self.elapsed_s,
            params_sha256="" if params is None else hashlib.sha256(params.buffer.tobytes()).hexdigest(),
            best_mean=self.best_mean,
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, the start-up left out."""
        return self._past.elapsed_s + (0.0 if self._began is None else self._clock() - self._began)

    def _judge(self, evaluation: Evaluation) -> None:
        self._report(
            EvaluationDone(
                **self._at(),
                version=evaluation.version,
                mean=evaluation.mean,
                std=evaluation.std,
                episodes=len(evaluation.returns),
            )
        )
        better = self.best_mean is None or evaluation.mean > self.best_mean
        if better and evaluation.params is not None:
            self.best_mean = evaluation.mean
            due = CheckpointDue(
                **self._at(), version=evaluation.version, params=evaluation.params, best=True, mean=evaluation.mean
            )
            self._report(due)

    def _at(self) -> dict[str, Any]:
        return {"elapsed_s": self.elapsed_s, "env_steps": self.env_steps, "updates": self.updates}
