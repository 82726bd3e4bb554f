"""Actors without networks: what they write, whoever acts for them and however many groups take turns."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.central import CentralRollout
from actors.copies import Copies, EnvConfig, seed_numbers
from actors.envs import make_copies
from actors.gathering import Gathering
from actors.inference import Inference, LocalInference
from actors.rollout import Rollout
from actors.worker import Actor, ActorConfig
from starling.algorithms.a3c import A3c, A3cConfig
from starling.algorithms.dqn import Dqn, DqnConfig
from starling.metrics import Meter, no_clock
from starling.networks.arrays import first_params
from starling.networks.forward import build_forward
from starling.params import Params
from starling.questions import ActionSource, Answer, Question
from starling.spec import Spec
from starling.types import Acting, Columns, Place, Unroll
from starling.windows import Window
from tests.kinds import Fixed
from tests.playing import Explorer, Sines, params_of, q_of
from tests.test_actor import Sink
from tests.test_rollout import BACKENDS, Counter, History, Recurrent

SEED = np.random.SeedSequence(7)
LENGTHS = [5, 1, 20, 16]
COPIES = 3


def rng_of_actor() -> np.random.Generator:
    """Return the random numbers that a rollout with networks of its own would draw."""
    return np.random.default_rng(seed_numbers(SEED, COPIES + 4)[COPIES:])


def inference_of(
    acting: Acting, spec: Spec, forward: Any, params: Params, num_copies: int = COPIES, source: Any = None
) -> Inference:
    source = source or Fixed(params)
    return Inference(
        "inference[0]", acting, spec, forward, source, 1, num_copies, rng_of_actor(), no_clock, Gathering(0.0)
    )


def central_of(
    groups: Sequence[Copies], acting: Acting, source: ActionSource, generation: int = 0, ahead: bool = True
) -> CentralRollout:
    place = Place(0, 1, sum(copies.num_copies for copies in groups))
    return CentralRollout(groups, acting, source, place, SEED, generation, ahead)


def played(rollout: CentralRollout, lengths: Sequence[int]) -> list[Unroll]:
    unrolls = [rollout.play(length, Meter(no_clock)) for length in lengths]
    assert all(isinstance(unroll, Unroll) for unroll in unrolls), unrolls
    return [unroll for unroll in unrolls if isinstance(unroll, Unroll)]


ALGORITHMS: dict[str, Callable[[], Acting]] = {
    "dqn": lambda: Dqn(DqnConfig(n_step=3, hidden=(8,))),
    "a3c": lambda: A3c(A3cConfig(hidden=(8,))),
    "a3c with a memory": lambda: A3c(A3cConfig(hidden=(8,), memory=4)),
}
TOYS: dict[str, tuple[Callable[[], Acting], Callable[[], Any]]] = {
    "judging": (lambda: Explorer(Window(length=3)), Sines),
    "not judging": (lambda: Explorer(Window(length=2), judges=False), Sines),
    "whole": (lambda: Explorer(None), Sines),
    "remembering": (lambda: Recurrent(Window(length=4, period=2)), Counter),
    "remembering, whole": (lambda: Recurrent(None), Counter),
}


def arrays_of(unroll: Unroll) -> Columns:
    """Return everything that an unroll holds, by name."""
    named = {f"column {name}": column for name, column in unroll.columns.items()}
    named |= {f"episode {name}": figure for name, figure in unroll.episodes.items()}
    named |= {f"start {name}": state for name, state in unroll.starts.items()}
    optional = {"next_obs": unroll.next_obs, "priorities": unroll.priorities}
    named |= {name: array for name, array in optional.items() if array is not None}
    who = np.array([unroll.actor, unroll.generation, unroll.sequence])
    return named | {"final_at": unroll.final_at, "final_obs": unroll.final_obs, "start_at": unroll.start_at, "who": who}


def assert_same(unrolls: Sequence[Unroll], others: Sequence[Unroll]) -> None:
    """Everything is the same, but for what two passes over other numbers of rows round differently."""
    for unroll, other in zip(unrolls, others, strict=True):
        one, two = arrays_of(unroll), arrays_of(other)
        assert list(one) == list(two)
        for name, array in one.items():
            assert array.dtype == two[name].dtype, name
            np.testing.assert_allclose(array, two[name], rtol=1e-6 if name == "priorities" else 0, err_msg=name)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, *TOYS])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_group_that_another_acts_for_writes_what_networks_of_its_own_would(backend: str, algorithm: str) -> None:
    copies, again = BACKENDS[backend](), BACKENDS[backend]()
    if algorithm in TOYS:
        acting, params = TOYS[algorithm][0](), params_of(1)
        forwards: list[Any] = [TOYS[algorithm][1]() for _ in range(2)]
    else:
        acting = ALGORITHMS[algorithm]()
        networks = acting.acting(copies.spec)
        params = first_params(networks, copies.spec, np.random.default_rng(3))
        forwards = [build_forward(networks, copies.spec) for _ in range(2)]
    local = Rollout(copies, acting, forwards[0], Place(0, 1, COPIES), SEED, generation=4)
    local.load(params)
    inference = inference_of(acting, again.spec, forwards[1], params)

    expected = [local.collect(length, 1, Meter(no_clock)) for length in LENGTHS]
    central = played(central_of([again], acting, LocalInference(inference), generation=4), LENGTHS)

    assert_same(central, expected)
    assert sum(len(unroll.final_at) for unroll in expected) > 10


def test_masks_go_with_the_question_and_come_back_with_the_step() -> None:
    config = EnvConfig(id="tests.gates:Gates", copies=COPIES, action_mask="info")
    acting = A3c(A3cConfig(hidden=(8,)))
    copies, again = make_copies(config), make_copies(config)
    networks = acting.acting(copies.spec)
    params = first_params(networks, copies.spec, np.random.default_rng(3))
    local = Rollout(copies, acting, build_forward(networks, copies.spec), Place(0, 1, COPIES), SEED)
    local.load(params)
    inference = inference_of(acting, again.spec, build_forward(networks, again.spec), params)

    expected = [local.collect(length, 1, Meter(no_clock)) for length in LENGTHS]
    central = played(central_of([again], acting, LocalInference(inference)), LENGTHS)

    assert_same(central, expected)
    assert not expected[0].columns["mask"].all()


class Decided(Explorer):
    """Never explores, so that nobody's turn to draw a random number matters."""

    def explore(self, place: Place) -> NDArray[np.float32]:
        return np.zeros(place.num_copies, np.float32)


class Remembering(Recurrent):
    """The same, with a memory."""

    def explore(self, place: Place) -> NDArray[np.float32]:
        return np.zeros(place.num_copies, np.float32)


class Late:
    """Answers one of the questions at a time, any of them, and sometimes none."""

    def __init__(self, inference: Inference, seed: int = 0) -> None:
        self.inference = inference
        self.asked: list[Question] = []
        self.heard: dict[int, int] = {}
        self._rng = np.random.default_rng(seed)

    def ask(self, question: Question) -> None:
        self.heard[question.group] = self.heard.get(question.group, 0) + 1
        self.asked.append(replace(question, obs=question.obs.copy()))

    def answers(self) -> list[Answer]:
        self.inference.refresh()
        if not self.asked or self._rng.random() < 0.3:
            return []
        return self.inference.act([self.asked.pop(self._rng.integers(len(self.asked)))])

    def waits(self) -> str:
        return "inference[0] to act"


def groups_of(backend: str, sizes: int = 2) -> list[Copies]:
    return [BACKENDS[backend]() for _ in range(sizes)]


def patiently(rollout: CentralRollout, lengths: Sequence[int]) -> list[Unroll]:
    """Play until every unroll is whole, however often somebody must be waited for."""
    unrolls = []
    for length in lengths:
        while isinstance(unroll := rollout.play(length, Meter(no_clock)), str):
            assert unroll == "inference[0] to act"
        unrolls.append(unroll)
    return unrolls


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [Window(length=3), Window(length=4, period=2)], ids=str)
def test_every_window_of_groups_that_take_turns_gets_its_priority_once(backend: str, window: Window, seed: int) -> None:
    groups = groups_of(backend)
    inference = inference_of(Decided(window), groups[0].spec, Sines(), params_of(1), num_copies=6)

    unrolls = patiently(central_of(groups, Decided(window), Late(inference, seed)), LENGTHS)

    history, reported = History(unrolls), {}
    for start, unroll in zip(history.starts, unrolls, strict=False):
        assert unroll.priorities is not None
        carried = len(unroll.priorities) - len(unroll.columns["reward"])
        for i, e in np.argwhere(~np.isnan(unroll.priorities)).tolist():
            assert (int(start) - carried + i, e) not in reported
            reported[int(start) - carried + i, e] = unroll.priorities[i, e]
    assert reported == pytest.approx(history.priorities(window), rel=1e-4, abs=1e-4)
    assert len(reported) > 20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [Window(length=2), None], ids=str)
def test_the_order_of_answers_changes_nothing(backend: str, window: Window | None) -> None:
    def unrolls(seed: int) -> list[Unroll]:
        groups, acting = groups_of(backend, 3), Remembering(window)
        inference = inference_of(acting, groups[0].spec, Counter(), params_of(1), num_copies=9)
        return patiently(central_of(groups, acting, Late(inference, seed)), LENGTHS)

    assert_same(unrolls(seed=1), unrolls(seed=2))


def test_no_group_waits_between_two_unrolls() -> None:
    groups = groups_of("DISABLED")
    late = Late(inference_of(Decided(None), groups[0].spec, Sines(), params_of(1), num_copies=6))

    patiently(central_of(groups, Decided(None), late), [5])

    assert late.heard == {0: 6, 1: 6}  # of each group one more than the unroll has rows


class Paramsless(Fixed):
    """Has a version of its own for every look."""

    def fetch(self, newer_than: int) -> tuple[int, Params]:
        self.version += 1
        return self.version, params_of(self.version)


def test_the_version_that_acted_is_that_of_each_step() -> None:
    copies, acting = BACKENDS["DISABLED"](), Decided(Window())
    inference = inference_of(acting, copies.spec, Sines(), params_of(1), source=Paramsless(params_of(0), 0))

    (unroll,) = played(central_of([copies], acting, LocalInference(inference)), [6])

    assert unroll.columns["version"][:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    for t, e in np.ndindex(6, COPIES):
        q = q_of(unroll.columns["obs"][t, e][None], t + 1)[0]
        assert np.allclose(unroll.columns["q"][t, e], q, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_end_where_what_was_remembered_is_lost(backend: str) -> None:
    copies, acting, meter = BACKENDS[backend](), Remembering(Window(length=2)), Meter(no_clock)
    late = Late(inference_of(acting, copies.spec, Counter(), params_of(1)))
    rollout = central_of([copies], acting, late, generation=5)
    patiently(rollout, [7, 4])
    assert isinstance(rollout.play(40, meter), str)

    late.inference = inference_of(acting, copies.spec, Counter(), params_of(1))  # a new incarnation
    while isinstance(unroll := rollout.play(9, meter), str):
        pass
    (later,) = patiently(rollout, [9])

    assert (unroll.generation, unroll.sequence) == (5, 3)  # number 2 will never come, so the old streams have ended
    assert (later.generation, later.sequence) == (5, 4)
    assert not unroll.columns["age"][0].any()
    assert not unroll.starts["q"][:COPIES].any()
    assert unroll.priorities is not None
    assert len(unroll.priorities) == 9  # nothing is carried over
    assert meter.snapshot()["counts"]["streams_lost"] == COPIES


def test_networks_without_a_memory_lose_nothing_with_their_process() -> None:
    def unrolls(dies: bool) -> list[Unroll]:
        copies, acting = BACKENDS["DISABLED"](), Decided(Window(length=3))
        late = Late(inference_of(acting, copies.spec, Sines(), params_of(1)))
        rollout = central_of([copies], acting, late)
        first = patiently(rollout, [7])
        if dies:
            late.inference = inference_of(acting, copies.spec, Sines(), params_of(1))
        return first + patiently(rollout, [9])

    assert_same(unrolls(dies=True), unrolls(dies=False))


def test_in_lockstep_an_unroll_waits_for_newer_parameters_than_the_last_one_had() -> None:
    copies, acting = BACKENDS["DISABLED"](), Decided(None)
    source = Fixed(params_of(1), version=3)
    inference = inference_of(acting, copies.spec, Sines(), params_of(1), source=source)
    rollout = central_of([copies], acting, LocalInference(inference), ahead=False)
    (first,) = played(rollout, [4])

    waits = [rollout.play(4, Meter(no_clock)) for _ in range(2)]
    source.version = 5
    (second,) = played(rollout, [4])

    assert waits == ["inference[0] to act by version 4 of the parameters"] * 2
    assert np.unique(first.columns["version"]).tolist() == [3]
    assert np.unique(second.columns["version"]).tolist() == [5]
    assert first.next_obs is not None
    assert np.array_equal(first.next_obs, second.columns["obs"][0])


def test_a_restart_is_not_disturbed_by_answers_to_what_was_asked_before() -> None:
    def unroll(before: list[int]) -> Unroll:
        copies, acting = BACKENDS["DISABLED"](), Remembering(None)
        rollout = central_of([copies], acting, Late(inference_of(acting, copies.spec, Counter(), params_of(1))))
        patiently(rollout, before)
        rollout.restart(np.random.SeedSequence(9), generation=6)
        return patiently(rollout, [8])[0]

    assert_same([unroll([3, 5])], [unroll([])])


def test_an_actor_waits_for_who_acts_for_it_by_name() -> None:
    copies, acting, sink = BACKENDS["DISABLED"](), Decided(Window()), Sink()
    inference = inference_of(acting, copies.spec, Sines(), params_of(1), source=Fixed(params_of(1), version=0))
    source = LocalInference(inference)
    actor = Actor(ActorConfig(unroll_length=4), central_of([copies], acting, source), sink, no_clock)

    assert actor.step().waits == "actor[0] waits for inference[0] to act"
    assert not sink.unrolls


def test_an_actor_that_began_an_unroll_finishes_it_whatever_room_its_sink_has() -> None:
    copies, acting, sink = BACKENDS["DISABLED"](), Decided(Window()), Sink(room=1)
    late = Late(inference_of(acting, copies.spec, Sines(), params_of(1)))
    actor = Actor(ActorConfig(unroll_length=6), central_of([copies], acting, late), sink, no_clock)

    waits = [actor.step().waits for _ in range(60)]

    assert "actor[0] waits for inference[0] to act" in waits
    assert waits[-1] == "actor[0] waits for insert credit from replay_server[1]"
    assert len(sink.unrolls) == 1
