"""The course of a run, the same for every runtime: what is reported, which version is best, and when it is over."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actors.evaluator import Evaluation
from cluster.config import GoalConfig
from cluster.contents import News
from cluster.report import CheckpointDue, EpisodesEnded, EvaluationDone, Event, Noted, Outcome, Sample
from starling.metrics import Clock
from starling.params import Params
from starling.state import State

SAMPLE_EVERY_S = 1.0
Reason = Literal["goal", "budget", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a run had done before it was resumed, or before its supervisor was replaced."""

    env_steps: int = 0
    updates: int = 0
    elapsed_s: float = 0.0
    best_mean: float | None = None
    number: int = 0  # of its newest checkpoint


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
        self.number = past.number
        self._kept_at = past.updates
        self._troubles: set[tuple[str, str]] = set()

    def advance(self, env_steps: int, updates: int) -> None:
        """Set the run's two clocks; training begins with the first step of an environment."""
        if self._began is None and env_steps:
            self._began = self._clock()
            self.note("began", start_s=round(self._began - self._launched_at, 3))
        self.env_steps, self.updates = env_steps + self._past.env_steps, updates + self._past.updates

    def hear(self, actor: int, news: Iterable[Any]) -> None:
        """Take what a role told: evaluations, news, or the episodes that ended with actor number `actor`."""
        for item in news:
            if isinstance(item, Evaluation):
                self._judge(item)
            elif isinstance(item, News):
                self.note(item.what, **item.facts)
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
            sample = Sample(**self.moment(), roles=roles())
            self._report(sample)
            for name, stats in sample.roles.items():
                self._hear_trouble(name, stats.get("notes", []))

    def _hear_trouble(self, role: str, sentences: Iterable[str]) -> None:
        """Note what a role says of its trouble, each sentence once."""
        for sentence in sentences:
            if (role, sentence) not in self._troubles:
                self._troubles.add((role, sentence))
                self.note("trouble", role=role, said=sentence)

    def over(self, stopped: bool) -> Reason | None:
        """Say why the run is over, or None while it is not."""
        goal = self._goal
        if goal.return_mean is not None and self.best_mean is not None and self.best_mean >= goal.return_mean:
            return "goal"
        if stopped:
            return "interrupted"
        late = goal.max_minutes is not None and self.elapsed_s >= goal.max_minutes * 60.0
        return "budget" if late or self.env_steps >= goal.total_steps else None

    def checkpoint_due(self, every: int) -> bool:
        """Say whether the next checkpoint's count of updates is reached; never for `every` 0."""
        return every > 0 and self.updates // every > self._kept_at // every

    def moment(self) -> dict[str, Any]:
        """Return where the run stands now."""
        return {"elapsed_s": self.elapsed_s, "env_steps": self.env_steps, "updates": self.updates}

    def checkpoint(
        self, version: int, params: Params, states: Mapping[str, State], moment: Mapping[str, Any] | None = None
    ) -> None:
        """Have the run kept as it stands, or as it stood at the moment from which the states are."""
        at = moment or self.moment()
        self.number += 1
        self._kept_at = at["updates"]
        due = CheckpointDue(
            **at,
            version=version,
            params=params,
            best=self.best_mean is None,
            number=self.number,
            best_mean=self.best_mean,
            states=states,
        )
        self._report(due)

    def end(self, reason: Reason, params: Params | None) -> Outcome:
        """Say how the run ended, and with which parameters, if there are any."""
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
                **self.moment(),
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
                **self.moment(), version=evaluation.version, params=evaluation.params, best=True, mean=evaluation.mean
            )
            self._report(due)
