"""The queue of unrolls: oldest first, bounded, shared out, each used so often, and none too old."""

from collections import Counter
from itertools import count
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.config import QueueConfig
from learner.inlet import version_of
from learner.unroll_queue import MOST_S, OTHERS_S, UnrollQueue
from starling.metrics import no_clock
from starling.types import Unroll
from tests.unrolls import unroll_of


class Ticks:
    """A clock that goes on by a fixed time at every look."""

    def __init__(self, by: float) -> None:
        self._now = count(0.0, by)

    def __call__(self) -> float:
        return next(self._now)


def queue_of(unrolls: int = 1, actors: int = 1, capacity: int = 8, uses: int = 1, max_lag: int = 0) -> UnrollQueue:
    config = QueueConfig(capacity=capacity, uses=uses, max_lag=max_lag)
    return UnrollQueue(config, unrolls, actors, no_clock)


def number_of(unroll: Unroll) -> tuple[int, int]:
    return unroll.actor, unroll.sequence


def taken(queue: UnrollQueue, version: int = 1) -> list[tuple[int, int]]:
    unrolls = queue.take(version)
    return [] if isinstance(unrolls, str) else [number_of(unroll) for unroll in unrolls]


def test_the_oldest_unrolls_come_first_whoever_sent_them() -> None:
    queue = queue_of(unrolls=2, actors=2)
    for actor, sequence in [(1, 0), (0, 0), (1, 1), (1, 2)]:
        assert queue.insert(unroll_of(actor, sequence)).accepted

    assert taken(queue) == [(1, 0), (0, 0)]
    assert taken(queue) == [(1, 1), (1, 2)]


def test_without_enough_unrolls_it_says_how_many_are_there_and_keeps_them() -> None:
    queue = queue_of(unrolls=3)
    queue.insert(unroll_of(sequence=0))

    said = queue.take(version=1)
    queue.insert(unroll_of(sequence=1))
    queue.insert(unroll_of(sequence=2))

    assert said == "learner waits for unrolls: 1 of 3 are there"
    assert taken(queue) == [(0, 0), (0, 1), (0, 2)]


@given(actors=st.integers(1, 5), more=st.integers(0, 7), order=st.lists(st.integers(0, 4), max_size=60))
def test_credit_that_was_given_is_good_and_never_more_than_the_capacity(
    actors: int, more: int, order: list[int]
) -> None:
    queue = queue_of(actors=actors, capacity=actors + more)
    promised = {actor: queue.credit(actor).credit for actor in range(actors)}
    sent = [0] * actors

    assert sum(promised.values()) == actors + more
    assert min(promised.values()) >= 1
    for actor in (wish % actors for wish in order):
        if promised[actor]:  # whatever the others have sent meanwhile
            reply = queue.insert(unroll_of(actor, sent[actor]))
            sent[actor] += 1
            assert reply.accepted
            assert reply.credit == promised[actor] - 1
            promised[actor] = reply.credit
        assert queue.stats()["gauges"]["queued"] <= actors + more


@pytest.mark.parametrize(("uses", "credit"), [(1, 1), (2, 0)])
def test_a_learner_that_waits_makes_room_before_the_actor_is_answered(uses: int, credit: int) -> None:
    queue = queue_of(actors=2, unrolls=2, capacity=2, uses=uses)
    assert taken(queue) == []

    replies = [queue.insert(unroll_of(actor)) for actor in (0, 1)]

    assert [reply.credit for reply in replies] == [0, credit]  # an unroll that is used again needs its place
    assert queue.credit(0).credit == credit
    assert taken(queue) == [(0, 0), (1, 0)]


def test_what_a_learner_was_handed_it_does_not_take_under_a_version_for_which_it_is_too_old() -> None:
    queue = queue_of(capacity=2, max_lag=1)
    assert taken(queue, version=5) == []
    for sequence, version in enumerate([4, 6]):
        queue.insert(unroll_of(sequence=sequence, version=version))

    assert taken(queue, version=6) == [(0, 1)]
    assert queue.stats()["counts"]["unrolls_stale"] == 1


def test_an_actor_alone_cannot_fill_the_queue() -> None:
    queue = queue_of(actors=3, capacity=4)
    for sequence in range(10):
        queue.insert(unroll_of(0, sequence))

    others = [queue.insert(unroll_of(actor, 0)).accepted for actor in (1, 2)]

    assert others == [True, True]
    assert queue.stats() == {"counts": {"unrolls_stale": 0, "unrolls_refused": 8}, "gauges": {"queued": 4.0}}


def test_a_place_is_free_again_once_its_unroll_was_used_up() -> None:
    queue = queue_of(capacity=1, uses=2)
    queue.insert(unroll_of(sequence=0))

    credits = [queue.credit(0).credit]
    for _ in range(2):
        assert taken(queue) == [(0, 0)]
        credits.append(queue.credit(0).credit)

    assert credits == [0, 0, 1]


@given(uses=st.integers(1, 4), unrolls=st.integers(1, 3), total=st.integers(1, 30))
def test_each_unroll_is_used_so_often_and_never_twice_in_one_update(uses: int, unrolls: int, total: int) -> None:
    queue = queue_of(capacity=8, uses=uses, unrolls=unrolls)
    used: Counter[tuple[int, int]] = Counter()

    for sequence in range(total):
        while not queue.credit(0).credit:
            used.update(taken(queue))
        queue.insert(unroll_of(sequence=sequence))
    while batch := taken(queue):
        assert len(set(batch)) == unrolls
        used.update(batch)

    left = queue.stats()["gauges"]["queued"]
    assert left < unrolls
    assert sum(number == uses for number in used.values()) == total - left
    assert max(used.values(), default=0) <= uses


def test_an_unroll_that_is_used_again_lets_the_others_go_first() -> None:
    queue = queue_of(uses=2)
    for sequence in range(3):
        queue.insert(unroll_of(sequence=sequence))

    assert [taken(queue)[0][1] for _ in range(6)] == [0, 1, 2, 0, 1, 2]


ACTIONS = st.lists(st.tuples(st.sampled_from(["send", "take", "publish"]), st.integers(0, 2), st.integers(0, 6)))


@given(actions=ACTIONS, max_lag=st.integers(1, 4), uses=st.integers(1, 3))
def test_no_unroll_is_taken_that_is_older_than_allowed_whatever_came_in_between(
    actions: list[tuple[str, int, int]], max_lag: int, uses: int
) -> None:
    queue = queue_of(unrolls=2, actors=3, capacity=6, uses=uses, max_lag=max_lag)
    version, sequences, inserted, uses_seen = 1, count(), 0, 0

    for action, actor, behind in actions:
        match action:
            case "publish":
                version += 1
            case "send":
                unroll = unroll_of(actor, next(sequences), max(1, version - behind))
                inserted += queue.insert(unroll).accepted
            case "take":
                unrolls = queue.take(version)
                if not isinstance(unrolls, str):
                    uses_seen += len(unrolls)
                    assert max(version - version_of(unroll) for unroll in unrolls) <= max_lag

    last = queue.take(version)  # what a learner that waits was handed is in the queue no more
    uses_seen += 0 if isinstance(last, str) else len(last)
    stale, left = queue.stats()["counts"]["unrolls_stale"], queue.stats()["gauges"]["queued"]
    assert uses_seen <= uses * (inserted - stale) + stale * (uses - 1)  # one may go stale between two uses
    assert uses_seen >= uses * (inserted - stale - left)


def test_what_was_dropped_as_stale_is_counted_and_makes_room() -> None:
    queue = queue_of(capacity=2, max_lag=1)
    for sequence, version in enumerate([3, 5]):
        queue.insert(unroll_of(sequence=sequence, version=version))

    assert taken(queue, version=5) == [(0, 1)]
    assert queue.stats()["counts"]["unrolls_stale"] == 1
    assert queue.credit(0).credit == 2


def test_the_oldest_row_says_how_old_an_unroll_is() -> None:
    assert version_of(unroll_of(version=7, steps=5)) == 7


def test_what_came_before_and_what_a_replaced_actor_sends_is_refused() -> None:
    queue = queue_of()
    first = queue.insert(unroll_of(sequence=0))
    again = queue.insert(unroll_of(sequence=0))
    successor = queue.insert(unroll_of(sequence=0, generation=1))
    replaced = queue.insert(unroll_of(sequence=1))

    assert [reply.accepted for reply in (first, again, successor, replaced)] == [True, False, True, False]
    assert queue.stats()["counts"]["unrolls_refused"] == 2


def test_a_queue_that_begins_again_is_empty_and_has_heard_nobody() -> None:
    queue = queue_of(capacity=1)
    queue.insert(unroll_of(generation=5))

    queue.clear()

    assert taken(queue) == []
    assert queue.insert(unroll_of(generation=0)).accepted


def test_threads_that_insert_at_once_lose_nothing_and_never_overfill_it() -> None:
    actors, each, capacity = 4, 40, 6
    queue = queue_of(actors=actors, capacity=capacity)
    most = 0

    def play(actor: int) -> None:
        for sequence in range(each):
            while not queue.credit(actor).credit:
                pass
            assert queue.insert(unroll_of(actor, sequence)).accepted

    threads = [Thread(target=play, args=(actor,), daemon=True) for actor in range(actors)]
    for thread in threads:
        thread.start()
    seen: list[tuple[int, int]] = []
    while len(seen) < actors * each:
        most = max(most, int(queue.stats()["gauges"]["queued"]))
        queue.wait(timeout_s=5.0)
        seen += taken(queue)

    assert most <= capacity
    for actor in range(actors):
        assert [sequence for who, sequence in seen if who == actor] == list(range(each))


def test_who_waits_for_an_unroll_is_woken_by_it() -> None:
    queue = queue_of()
    assert isinstance(queue.take(version=1), str)
    thread = Thread(target=queue.wait, args=(60.0,), daemon=True)
    thread.start()

    queue.insert(unroll_of())
    thread.join(timeout=30.0)

    assert not thread.is_alive()


def test_who_waits_for_other_actors_does_not_ask_all_the_time() -> None:
    queue = queue_of(unrolls=2, actors=2, capacity=2)
    for sequence in range(20):
        assert not taken(queue)
        waits = queue.insert(unroll_of(0, sequence))
        queue.insert(unroll_of(1, sequence))
        assert taken(queue)

    assert (waits.credit, waits.ask_after_s) == (0, OTHERS_S)


@pytest.mark.parametrize(("gap_s", "expected"), [(0.004, 0.016), (1.0, MOST_S)])
def test_a_full_queue_says_when_half_of_it_will_be_free(gap_s: float, expected: float) -> None:
    queue = UnrollQueue(QueueConfig(capacity=8), unrolls=1, actors=1, clock=Ticks(gap_s))
    for sequence in range(200):
        queue.insert(unroll_of(sequence=sequence))
        queue.take(version=1)

    for sequence in range(200, 208):
        reply = queue.insert(unroll_of(sequence=sequence))

    assert (reply.credit, reply.waits) == (0, "its queue is full")
    assert reply.ask_after_s == pytest.approx(expected, rel=0.01)
    assert queue.credit(0) == (0, reply.waits, reply.ask_after_s)
