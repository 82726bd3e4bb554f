import numpy as np
import pytest

from actors.gathering import Gathering
from starling.questions import Question

DEADLINE_S = 2**-9  # a power of two: sums of such are exact


def question(actor: int, group: int = 0, copies: int = 4, newer_than: int = 0, number: int = 1) -> Question:
    return Question(
        actor=actor,
        generation=0,
        group=group,
        number=number,
        obs=np.zeros((copies, 2)),
        fresh=np.zeros(copies, np.bool_),
        starting=np.empty(0, np.int64),
        cut=np.empty(0, np.int64),
        cut_obs=np.zeros((0, 2)),
        newer_than=newer_than,
    )


def knowing(*actors: int, max_copies: int = 0) -> Gathering:
    """Return one that has answered these actors a moment ago."""
    gathering = Gathering(DEADLINE_S, max_copies)
    for actor in actors:
        gathering.add(question(actor), 0.0)
    while gathering.wait_s(version=1, now=0.0) is not None:
        gathering.take(version=1)
    return gathering


def who(questions: list[Question]) -> list[tuple[int, int]]:
    return [(question.actor, question.group) for question in questions]


def test_nobody_is_acted_for_who_has_not_asked() -> None:
    assert Gathering(DEADLINE_S).wait_s(version=1, now=0.0) is None


def test_who_is_alone_does_not_wait() -> None:
    gathering = knowing(0)

    gathering.add(question(0), 5.0)

    assert gathering.wait_s(version=1, now=5.0) == 0.0


def test_a_second_group_that_still_steps_is_not_waited_for() -> None:
    """Else both groups of an actor would act together, and nobody would step while somebody acts."""
    gathering = knowing(0)
    gathering.add(question(0, group=1), 0.0)
    gathering.take(version=1)

    gathering.add(question(0, group=0), 5.0)

    assert gathering.wait_s(version=1, now=5.0) == 0.0


def test_a_batch_waits_for_every_actor_that_is_expected_and_not_for_the_deadline() -> None:
    gathering = knowing(0, 1, 2)

    gathering.add(question(1), 5.0)
    gathering.add(question(0), 5.001)
    waits = gathering.wait_s(version=1, now=5.001)
    gathering.add(question(2), 5.0015)

    assert waits == pytest.approx(DEADLINE_S - 0.001)
    assert gathering.wait_s(version=1, now=5.0015) == 0.0
    assert who(gathering.take(version=1)) == [(1, 0), (0, 0), (2, 0)]


def test_who_does_not_come_costs_the_others_one_deadline_and_no_more() -> None:
    gathering = knowing(0, 1)
    gathering.add(question(0), 5.0)
    first = gathering.wait_s(version=1, now=5.0)
    assert gathering.wait_s(version=1, now=5.0 + DEADLINE_S) == 0.0
    gathering.take(version=1)

    gathering.add(question(0), 6.0)
    second = gathering.wait_s(version=1, now=6.0)

    assert (first, second) == (DEADLINE_S, 0.0)


def test_who_comes_back_is_expected_again() -> None:
    gathering = knowing(0, 1)
    gathering.add(question(0), 5.0)
    gathering.take(version=1)  # without actor 1
    gathering.add(question(1), 5.5)
    gathering.take(version=1)  # without actor 0
    gathering.add(question(0), 6.0)

    assert gathering.wait_s(version=1, now=6.0) == DEADLINE_S


def test_a_batch_has_no_more_copies_than_it_may_and_the_oldest_come_first() -> None:
    gathering = knowing(0, 1, 2, max_copies=8)
    for actor in (2, 0, 1):
        gathering.add(question(actor), 5.0)

    assert who(gathering.take(version=1)) == [(2, 0), (0, 0)]
    assert who(gathering.take(version=1)) == [(1, 0)]


def test_a_batch_that_is_full_waits_for_nobody() -> None:
    gathering = knowing(0, 1, 2, max_copies=8)
    gathering.add(question(0), 5.0)
    gathering.add(question(1), 5.0)

    assert gathering.wait_s(version=1, now=5.0) == 0.0


def test_a_group_larger_than_a_batch_is_acted_for_all_the_same() -> None:
    gathering = knowing(max_copies=3)
    gathering.add(question(0), 5.0)

    assert who(gathering.take(version=1)) == [(0, 0)]


@pytest.mark.parametrize("max_copies", [0, 4, 12])
def test_nobody_waits_for_others_longer_than_the_deadline_whatever_comes_meanwhile(max_copies: int) -> None:
    rng, gathering, now = np.random.default_rng(3), Gathering(DEADLINE_S, max_copies), 0.0
    came: dict[tuple[int, int], float] = {}
    longest = 0.0
    for _ in range(3000):
        now += float(rng.exponential(0.0003))
        key = int(rng.integers(6)), int(rng.integers(2))
        if key not in came:
            gathering.add(question(*key), now)
            came[key] = now
        while gathering.wait_s(version=1, now=now) == 0.0:
            longest = max([longest, *(now - asked for asked in came.values())])
            for question_ in gathering.take(version=1):
                del came[question_.actor, question_.group]
        left = gathering.wait_s(version=1, now=now)
        assert (left is None) == (not came)
        assert left is None or now + left <= min(came.values()) + DEADLINE_S + 1e-9
    assert longest <= DEADLINE_S + 0.004  # what passed between two looks


def test_a_question_that_wants_newer_parameters_is_held_and_then_acted_on_at_once() -> None:
    gathering = knowing(0, 1)
    gathering.add(question(0, newer_than=7), 5.0)
    gathering.add(question(1), 5.0)

    assert gathering.wait_s(version=7, now=5.0) == 0.0  # actor 0 has asked: nobody else is expected
    assert who(gathering.take(version=7)) == [(1, 0)]
    assert gathering.wait_s(version=7, now=9.0) is None
    assert who(gathering.held(version=7)) == [(0, 0)]
    assert gathering.wait_s(version=8, now=9.0) == 0.0
    assert who(gathering.take(version=8)) == [(0, 0)]


def test_nobody_is_acted_for_before_the_first_parameters() -> None:
    gathering = Gathering(DEADLINE_S)
    gathering.add(question(0), 5.0)

    assert gathering.wait_s(version=0, now=9.0) is None


def test_a_later_question_of_a_group_takes_the_place_of_its_older_one() -> None:
    gathering = knowing(0)
    gathering.add(question(0, number=3), 5.0)
    gathering.add(question(0, number=4), 5.0)

    assert [question.number for question in gathering.take(version=1)] == [4]
