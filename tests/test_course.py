"""The course of a run: its clocks, its best version, and when it is over, by a clock that is set by hand."""

import hashlib
from typing import Any

import numpy as np
import pytest

from actors.evaluator import Evaluation
from cluster.config import GoalConfig
from cluster.course import Course, Past
from cluster.report import CheckpointDue, EpisodesEnded, EvaluationDone, Event, Noted, Sample
from starling.params import Params
from tests.watch import Watch


class Told(list[Event]):
    """Keeps what is reported."""

    def kinds(self) -> list[type]:
        return [type(event) for event in self]


def params_of(value: float) -> Params:
    return Params.of({"q.bias": np.full(2, value, np.float32)})


def evaluation(mean: float, version: int = 1, better: bool = True) -> Evaluation:
    returns = np.array([mean - 1.0, mean + 1.0])
    return Evaluation(version, returns, np.array([3, 4]), params_of(mean) if better else None)


def course_with(told: Told, clock: Watch | None = None, past: Past | None = None, **goal: Any) -> Course:
    return Course(GoalConfig(**goal), told.append, clock or Watch(), past or Past())


def test_training_begins_with_the_first_step_and_not_with_the_start_up() -> None:
    told, clock = Told(), Watch(100.0)
    course = course_with(told, clock)

    clock.now_s = 107.0
    course.advance(0, 0)
    starting_s = course.elapsed_s
    course.advance(16, 0)
    clock.now_s = 109.0

    assert starting_s == 0.0
    assert course.elapsed_s == 2.0
    assert told == [Noted(elapsed_s=0.0, what="began", facts={"start_s": 7.0})]


def test_the_start_up_is_counted_from_the_launch() -> None:
    told = Told()
    course = Course(GoalConfig(), told.append, Watch(107.0), Past(), launched_at=95.0)

    course.advance(16, 0)

    assert told == [Noted(elapsed_s=0.0, what="began", facts={"start_s": 12.0})]


def test_what_a_lost_supervisor_had_done_is_counted() -> None:
    told, clock = Told(), Watch()
    course = course_with(told, clock, Past(env_steps=1000, updates=30, elapsed_s=60.0, best_mean=5.0), total_steps=1100)

    course.advance(99, 2)
    before = course.over(stopped=False)
    course.advance(100, 2)
    clock.now_s = 1.0

    assert (course.env_steps, course.updates, course.elapsed_s) == (1100, 32, 61.0)
    assert (before, course.over(stopped=False)) == (None, "budget")
    course.hear(0, [evaluation(4.0)])
    assert course.best_mean == 5.0


def test_an_evaluation_better_than_all_before_leaves_a_checkpoint() -> None:
    told = Told()
    course = course_with(told)

    course.hear(0, [evaluation(3.0, 1), evaluation(2.0, 2, better=False), evaluation(7.0, 3)])

    assert told.kinds() == [EvaluationDone, CheckpointDue, EvaluationDone, EvaluationDone, CheckpointDue]
    kept = [(event.version, event.best, event.mean) for event in told if isinstance(event, CheckpointDue)]
    assert kept == [(1, True, 3.0), (3, True, 7.0)]
    assert course.best_mean == 7.0


def test_the_evaluators_own_best_is_not_kept_when_the_run_has_seen_better() -> None:
    told = Told()
    course = course_with(told)
    course.hear(0, [evaluation(9.0)])

    course.hear(0, [evaluation(8.0)])  # by an evaluator that was re-created, and remembers nothing

    assert told.kinds() == [EvaluationDone, CheckpointDue, EvaluationDone]


def test_episodes_are_told_with_their_actor_and_silence_is_not() -> None:
    told = Told()
    course = course_with(told)
    nothing = {"return": np.empty(0), "length": np.empty(0, np.int64)}

    course.hear(2, [{"return": np.array([9.0, 11.0]), "length": np.array([9, 11])}, nothing])

    assert told == [
        EpisodesEnded(elapsed_s=0.0, env_steps=0, actor=2, returns=[9.0, 11.0], lengths=[9, 11]),
    ]


def test_a_sample_is_taken_once_a_second_and_whenever_it_is_asked_for() -> None:
    told, clock = Told(), Watch()
    course = course_with(told, clock)
    asked: list[float] = []

    def roles() -> dict[str, dict[str, Any]]:
        asked.append(clock.now_s)
        return {}

    for clock.now_s in (0.0, 0.9, 1.0, 1.5, 1.9, 2.5):
        course.sample(roles)
    course.sample(roles, now=True)

    assert asked == [1.0, 2.5, 2.5]
    assert told.kinds() == [Sample] * 3


@pytest.mark.parametrize(
    ("env_steps", "elapsed_s", "mean", "stopped", "reason"),
    [
        (999, 59.0, 9.9, False, None),
        (999, 59.0, 10.0, False, "goal"),
        (1000, 59.0, 9.9, False, "budget"),
        (999, 60.0, 9.9, False, "budget"),
        (999, 59.0, 9.9, True, "interrupted"),
        (1000, 60.0, 9.9, True, "interrupted"),
        (1000, 60.0, 10.0, True, "goal"),
    ],
)
def test_a_run_is_over_at_its_goal_then_on_request_then_with_its_budgets(
    env_steps: int, elapsed_s: float, mean: float, stopped: bool, reason: str | None
) -> None:
    clock = Watch()
    course = course_with(Told(), clock, return_mean=10.0, total_steps=1000, max_minutes=1.0)
    course.advance(env_steps, 0)
    course.hear(0, [evaluation(mean)])

    clock.now_s = elapsed_s

    assert course.over(stopped) == reason


def test_a_run_without_a_goal_ends_by_its_budget_alone() -> None:
    course = course_with(Told(), total_steps=1000)
    course.advance(999, 0)

    course.hear(0, [evaluation(1e9)])

    assert course.over(stopped=False) is None


def test_the_outcome_names_the_last_parameters_by_their_sha256() -> None:
    course = course_with(Told())
    course.hear(0, [evaluation(3.0)])

    outcome = course.end("budget", params_of(4.0))

    assert (outcome.reason, outcome.best_mean) == ("budget", 3.0)
    assert outcome.params_sha256 == hashlib.sha256(np.full(2, 4.0, np.float32).tobytes()).hexdigest()


def test_a_run_that_published_nothing_ends_without_parameters() -> None:
    told = Told()

    outcome = course_with(told).end("interrupted", None)

    assert told == []
    assert outcome.params_sha256 == ""
