"""The worker: what it pushes, by whose parameters it plays, and for whom it waits."""

from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from actors import gradients
from actors.config import PlayConfig
from actors.copies import EnvConfig
from actors.envs import make_copies
from actors.gradients import MAX_BAD_GRADIENTS, GradientWorker
from starling.errors import RoleError
from starling.gradients import Gradient, Versions
from starling.metrics import no_clock
from starling.params import Params
from starling.types import Unroll
from tests.playing import params_of, rollout_of

COUNTING = EnvConfig(id="tests.counting:Counting", copies=2)


class Slope(NamedTuple):
    values: NDArray[np.float32]
    norm: float
    metrics: dict[str, float]


class Differentiator:
    """Answers every unroll with one gradient, and notes what it took over."""

    def __init__(self, *norms: float) -> None:
        self.taken: list[tuple[int, int | None]] = []
        self.unrolls: list[Unroll] = []
        self._norms = list(norms)

    def restart(self, seed: np.random.SeedSequence) -> None:
        self.taken.clear()

    def take(self, values: NDArray[np.float32], version: int, since: int | None) -> Params:
        self.taken.append((version, since))
        return params_of(version)

    def slope(self, unroll: Unroll) -> Slope:
        self.unrolls.append(unroll)
        norm = self._norms.pop(0) if self._norms else 5.0
        return Slope(np.array([3.0, 4.0], np.float32), norm, {"loss_a": 0.25})


class Sink:
    """Moves to the next versions with each gradient, and has an answer when it is told to."""

    def __init__(self, *slices: int) -> None:
        self.pushed: list[Gradient] = []
        self.versions: Versions = slices or (1,)
        self.wait = ""

    def push(self, gradient: Gradient) -> None:
        self.pushed.append(gradient)
        self.versions = tuple(version + 2 for version in self.versions)

    def must_wait(self) -> str:
        return self.wait

    def fetch(self, newer_than: Versions) -> tuple[Versions, NDArray[np.float32]] | None:
        return None if newer_than == self.versions else (self.versions, np.zeros(2, np.float32))


def worker_of(sink: Sink, differentiator: Differentiator, clip_norm: float = 0.0, length: int = 4) -> GradientWorker:
    rollout = rollout_of(make_copies(COUNTING), None)
    config = PlayConfig(unroll_length=length)
    return GradientWorker(config, clip_norm, rollout, differentiator, sink, 9, no_clock)


def test_each_unroll_becomes_one_gradient_of_the_parameters_that_played_it() -> None:
    sink, differentiator = Sink(7, 5), Differentiator()
    worker = worker_of(sink, differentiator)

    progress = [worker.step() for _ in range(3)]

    assert [(g.worker, g.generation, g.step, g.versions) for g in sink.pushed] == [
        (2, 9, 0, (7, 5)),
        (2, 9, 1, (9, 7)),
        (2, 9, 2, (11, 9)),
    ]
    assert [set(unroll.columns["version"].flat) for unroll in differentiator.unrolls] == [{5}, {7}, {9}]
    assert differentiator.taken == [(5, None), (7, 5), (9, 7), (11, 9)]
    assert [p.work["gradients"] for p in progress] == [1, 1, 1]
    assert worker.env_steps == sum(g.env_steps for g in sink.pushed) > 0


@pytest.mark.parametrize(("clip_norm", "values"), [(0.0, [3.0, 4.0]), (40.0, [3.0, 4.0]), (0.5, [0.3, 0.4])])
def test_a_gradient_is_clipped_and_tells_its_norm_before(clip_norm: float, values: list[float]) -> None:
    sink = Sink()

    worker_of(sink, Differentiator(), clip_norm).step()

    np.testing.assert_allclose(sink.pushed[0].values, values, rtol=1e-6)
    assert sink.pushed[0].norm == 5.0
    assert sink.pushed[0].values.dtype == np.float32


def test_it_plays_nothing_before_the_answer_to_its_last_gradient() -> None:
    sink, differentiator = Sink(), Differentiator()
    sink.wait = "parameters from param_server[0]"
    worker = worker_of(sink, differentiator)

    assert worker.step().waits == "actor[2] waits for parameters from param_server[0]"
    sink.wait = ""
    worker.step()
    sink.versions, sink.wait = (6,), "param_server[0] to answer"
    worker.step()  # the answer to the first came with it

    assert worker.step().waits == "actor[2] waits for param_server[0] to answer"
    assert len(sink.pushed) == 2


def test_an_answer_is_taken_at_once_and_not_what_others_make_of_it_later() -> None:
    sink = Sink(1)
    worker = worker_of(sink, Differentiator())

    worker.step()
    sink.versions = (50,)  # by others, before its next turn
    worker.step()

    assert [gradient.versions for gradient in sink.pushed] == [(1,), (3,)]


@pytest.mark.parametrize("norm", [nan, inf])
def test_what_is_not_finite_is_pushed_and_ends_the_worker_when_it_is_all_there_is(norm: float) -> None:
    sink = Sink()
    bad = [norm] * MAX_BAD_GRADIENTS
    worker = worker_of(sink, Differentiator(*bad[1:], 5.0, *bad), clip_norm=0.5)

    for _ in range(2 * MAX_BAD_GRADIENTS - 1):
        worker.step()
    with pytest.raises(RoleError, match=r"actor\[2\] got 10 gradients in a row that are not finite; lower params"):
        worker.step()

    assert [gradient.norm for gradient in sink.pushed].count(5.0) == 1
    assert len(sink.pushed) == 2 * MAX_BAD_GRADIENTS


def test_after_a_restart_targets_are_copies_and_steps_count_anew() -> None:
    sink, differentiator = Sink(1), Differentiator()
    worker = worker_of(sink, differentiator)
    worker.step()

    worker.restart(np.random.SeedSequence(3), 11)
    worker.step()

    assert [(g.generation, g.step) for g in sink.pushed] == [(9, 0), (11, 0)]
    assert differentiator.taken[0] == (3, None)


def test_it_says_what_it_did_and_which_episodes_ended() -> None:
    worker = worker_of(Sink(), Differentiator(), length=12)

    worker.step()

    stats: dict[str, Any] = worker.stats()
    assert stats["counts"]["gradients"] == 1
    assert stats["counts"]["env_steps"] == worker.env_steps
    assert stats["gauges"] == {"loss_a": 0.25, "norm": 5.0, "version": 3.0}
    assert set(stats["time_s"]) >= {"acting", "stepping", "computing", "pushing", "waiting_values"}
    ended = worker.take()
    assert len(ended[0]["return"]) == stats["counts"]["episodes"] > 0
    assert worker.take() == []


def test_episodes_that_nobody_asks_for_take_no_more_memory_than_their_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "MAX_UNTOLD", 2)
    worker = worker_of(Sink(), Differentiator(), length=12)

    for _ in range(5):
        worker.step()

    assert len(worker.take()) == 2
