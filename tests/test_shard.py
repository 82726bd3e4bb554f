import gc
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from replay_server.shard import ReplayShard
from replay_server.storage import columns_of, row_bytes
from replay_server.streams import MAX_SILENT
from starling.types import Columns, SampleReply, SampleRequest
from starling.windows import Window
from starling.wire import decode_packed, encode_unroll
from tests.replay_worlds import EXTRA, SPEC, STATES, CountingWorld, bandit_shard, bandit_unroll, draw, make_shard


def test_windows_are_drawn_in_proportion_to_their_priorities() -> None:
    shard = bandit_shard([1.0, 2.0, 5.0])

    reply = draw(shard, 80_000)

    np.testing.assert_allclose(reply.probabilities, np.array([1, 2, 5])[serials(reply) - 1] / 8)
    np.testing.assert_allclose(np.bincount(serials(reply))[1:] / 80_000, np.array([1, 2, 5]) / 8, atol=0.01)
    assert (reply.mass, reply.size, reply.inserted) == (8.0, 3, 3)


def serials(reply: SampleReply) -> np.ndarray:
    return reply.columns["obs"][0, :, 1].astype(int)


def test_alpha_tempers_priorities_and_at_zero_ignores_them() -> None:
    tempered = bandit_shard([1.0, 16.0], alpha=0.5)
    uniform = bandit_shard([1.0, 16.0], alpha=0.0)

    assert draw(tempered, 1).mass == pytest.approx(1 + 4)
    assert set(draw(uniform, 100).probabilities) == {0.5}


def test_priorities_of_a_request_count_before_its_draw() -> None:
    shard = bandit_shard([1.0, 1.0])
    keys = key_by_serial(shard)

    reply = draw(shard, 1000, keys=[keys[1], keys[2]], priorities=[0.0, 7.0])

    assert reply.mass == 7.0
    assert set(serials(reply)) == {2}


def key_by_serial(shard: ReplayShard) -> dict[int, int]:
    reply = draw(shard, 1000)
    return dict(zip(serials(reply).tolist(), reply.keys.tolist(), strict=True))


def test_a_late_priority_does_not_touch_the_window_that_took_its_slot() -> None:
    shard = bandit_shard([1.0] * 4, capacity=8)
    keys = key_by_serial(shard)
    shard.insert(bandit_unroll([3.0] * 4, sequence=1))

    reply = draw(shard, 1, keys=list(keys.values()), priorities=[1e9] * 4)

    assert reply.mass == 12.0
    assert shard.stats()["counts"]["priorities_late"] == 4


def test_a_priority_for_a_row_that_begins_no_window_changes_nothing() -> None:
    shard = bandit_shard([1.0, 1.0])  # rows 2 and 3 hold final observations

    reply = draw(shard, 1, keys=[2, 3, 4000], priorities=[1e9] * 3)

    assert (reply.mass, reply.size) == (2.0, 2)


@pytest.mark.parametrize("priority", [np.nan, np.inf, -np.inf, -1.0, 1e300])
def test_a_priority_that_is_no_size_is_refused_and_counted(priority: float) -> None:
    shard = bandit_shard([1.0, 2.0])

    reply = draw(shard, 1, keys=[0], priorities=[priority])

    assert reply.mass == 3.0
    assert shard.stats()["counts"]["priorities_refused"] == 1


def test_a_window_of_unknown_priority_gets_the_largest_seen() -> None:
    shard = bandit_shard([1.0, 4.0])
    shard.insert(bandit_unroll([np.nan, 2.0], sequence=1))
    from_actors = draw(shard, 0).mass
    draw(shard, 0, largest_priority=10.0)
    shard.insert(bandit_unroll(None, count=2, sequence=2))

    assert from_actors == 1 + 4 + 4 + 2
    assert draw(shard, 0).mass == from_actors + 10 + 10


def test_an_infinite_priority_of_an_actor_counts_as_unknown() -> None:
    shard = bandit_shard([np.inf, 3.0])

    assert draw(shard, 0).mass == 6.0
    assert shard.stats()["counts"]["priorities_refused"] == 1


@pytest.mark.parametrize("cut", [False, True])
def test_priorities_are_aligned_with_their_windows_across_unrolls_and_after_a_cut(cut: bool) -> None:
    world = CountingWorld(np.random.default_rng(3), end_probability=0.2)
    window = Window(length=3)
    shard = make_shard(window, alpha=1.0, eps=1e-300, min_windows=1)
    unrolls = [world.unroll(5), world.unroll(4, lost=cut), world.unroll(6)]

    for unroll in unrolls[:1] + unrolls[1 + cut :]:
        carried = unrolls[unroll.sequence - 1].columns["obs"][-3:, :, 1] if unroll.sequence else np.empty((0, 2))
        own = unroll.columns["obs"][:, :, 1]
        shard.insert(replace(unroll, priorities=np.concatenate([carried, own])))  # each its own serial number

    reply = draw(shard, 3000)
    assert set(serials(reply)) == {serial for _, serial in world.windows(window, 10**9)}
    np.testing.assert_allclose(reply.probabilities * reply.mass, serials(reply))


def test_a_window_whose_first_row_was_overwritten_before_it_was_whole_never_comes_to_be() -> None:
    slow = CountingWorld(np.random.default_rng(0), copies=1, end_probability=0.0, actor=1)
    shard = make_shard(Window(length=3), capacity=20)
    shard.insert(slow.unroll(2))
    shard.insert(bandit_unroll(None, count=9))  # 18 rows: the next one takes the place of the first

    shard.insert(slow.unroll(2))

    reply = draw(shard, 500)
    assert set(reply.keys) == set(range(2, 11))  # the other actor's
    assert (reply.size, reply.inserted) == (9, 9)


@pytest.mark.parametrize("as_sent", [False, True])
def test_memory_is_flat_over_ten_turnovers_of_a_full_shard(as_sent: bool) -> None:
    shard = make_shard(capacity=400, min_windows=1)

    def turn_over(sequences: range) -> int:
        for sequence in sequences:
            unroll = bandit_unroll([1.0] * 20, sequence=sequence, actor=sequence % 4)
            shard.insert(decode_packed(encode_unroll(unroll)) if as_sent else unroll)
            draw(shard, 32)
        gc.collect()
        # of arrays alone: numpy's own calls leave up to 4,096 method names in Python's cache of types
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)

    tracemalloc.start()
    full, turned = turn_over(range(40)), turn_over(range(40, 140))
    tracemalloc.stop()

    assert shard.stats()["counts"]["unrolls_inserted"] == 140
    assert turned - full < 100  # one byte for each unroll


def test_of_writers_that_are_gone_only_so_many_are_remembered() -> None:
    shard = make_shard(capacity=50)

    for actor in range(MAX_SILENT + 200):
        shard.insert(bandit_unroll([1.0], actor=actor))

    assert shard.stats()["gauges"]["writers"] == MAX_SILENT
    assert not shard.insert(bandit_unroll([1.0], actor=MAX_SILENT + 199)).accepted
    assert shard.insert(bandit_unroll([1.0], actor=0)).accepted


@pytest.mark.parametrize(
    ("window", "recurrent"),
    [(Window(), False), (Window(stack=4), False), (Window(length=8, period=4, burn_in=4), True), (Window(), True)],
)
def test_a_row_takes_the_memory_that_was_announced(window: Window, recurrent: bool) -> None:
    capacity = 5_001
    shard = make_shard(window, recurrent=recurrent, capacity=capacity)
    for sequence in range(26):
        shard.insert(bandit_unroll(None, count=100, sequence=sequence))

    announced = capacity * row_bytes(columns_of(SPEC, EXTRA), window, STATES if recurrent else {})

    assert shard.stats()["gauges"]["rows"] == capacity
    assert shard.stats()["gauges"]["bytes"] == pytest.approx(announced, rel=0.02)


def test_rows_of_recorded_data_are_in_no_account() -> None:
    shard = make_shard(min_windows=5)

    first = shard.fill(bandit_unroll(None, count=4))
    second = shard.fill(bandit_unroll(None, count=3))  # the same sequence: nothing is refused

    assert (first, second) == ((0, 8), (8, 6))
    reply = draw(shard, 50)
    assert (reply.size, reply.inserted) == (7, 0)
    assert (shard.rows, shard.stats()["counts"]["unrolls_filled"]) == ((0, 14), 2)


def test_rows_that_were_left_out_are_nobodys() -> None:
    shard = make_shard(capacity=40)
    shard.fill(bandit_unroll(None, count=5))

    shard.refill(bandit_unroll(None, count=5, sequence=1), 33)

    assert shard.rows == (3, 43)
    assert sorted(set(draw(shard, 500).keys.tolist())) == [3, 4, *range(33, 38)]


def test_an_index_says_nothing_of_rows_that_came_after_it_or_are_gone() -> None:
    before, after = bandit_shard([1.0, 2.0, 3.0], capacity=8), bandit_shard([1.0, 2.0, 3.0], capacity=8)
    index = before.index()
    after.insert(bandit_unroll([7.0], sequence=1))
    after.insert(bandit_unroll([9.0], sequence=2))

    index.arrays["masses"][:] *= 10.0
    after.adopt(index, account=False, writers=True)

    assert draw(after, 0).mass == 30.0 + 7.0 + 9.0
    assert not after.insert(bandit_unroll([7.0], sequence=2)).accepted


@pytest.mark.parametrize("writers", [True, False])
def test_a_writer_in_an_index_cannot_send_its_last_unroll_again(writers: bool) -> None:
    shard, empty = bandit_shard([1.0], actor=3), make_shard()

    empty.adopt(shard.index(), account=True, writers=writers)

    assert empty.rows[1] == shard.rows[1]  # no number is used again
    assert empty.insert(bandit_unroll([1.0], actor=3)).accepted != writers
    assert empty.insert(bandit_unroll([1.0], actor=3, sequence=1)).accepted


def test_masses_are_set_only_where_a_window_begins() -> None:
    shard = bandit_shard([1.0, 1.0])

    shard.set_masses(np.array([0, 1, 2, 99, -1]), np.array([5.0, 0.0, 7.0, 7.0, 7.0]))

    assert draw(shard, 0).mass == 6.0


def test_a_key_of_another_incarnation_is_late() -> None:
    shard = make_shard(alpha=1.0, eps=1e-300, origin=2)
    shard.insert(bandit_unroll([1.0, 1.0]))
    keys = [row + (origin << 40) for origin in (1, 2, 3) for row in (0, 1)]

    reply = draw(shard, 9, keys=keys, priorities=[5.0] * 6)

    assert (reply.mass, reply.origin, set(reply.keys >> 40)) == (10.0, 2, {2})
    assert shard.stats()["counts"]["priorities_late"] == 4


def test_windows_are_gathered_into_the_arrays_of_the_caller() -> None:
    shard, made = bandit_shard([1.0] * 9), {}

    def make(entries: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> Columns:
        made.update({name: np.empty(shape, dtype) for name, (shape, dtype) in entries.items()})
        return made

    request = SampleRequest(counts=[5], keys=np.empty(0, np.int64), priorities=np.empty(0), insert_limit=0)
    reply = shard.sample(request, make)

    assert reply.windows is made
    assert made["obs"][0, :, 1].tolist() == (reply.keys + 1).tolist()


def test_windows_of_a_batch_come_in_their_order_and_each_batch_from_the_whole_shard() -> None:
    shard = bandit_shard([1.0] * 400)
    request = SampleRequest(counts=[64, 64], keys=np.empty(0, np.int64), priorities=np.empty(0), insert_limit=0)

    for keys in np.split(shard.sample(request).keys, 2):
        assert keys.tolist() == sorted(keys.tolist())
        assert keys[0] < 100
        assert keys[-1] >= 300


def test_a_shard_shows_masses_draws_and_versions_of_its_windows() -> None:
    shard = make_shard(alpha=1.0, eps=1e-300, capacity=100)
    for sequence, version in enumerate((3, 8)):
        unroll = bandit_unroll([0.75, 2.0, 2.0], sequence=sequence)
        unroll.columns["version"][:] = version
        shard.insert(unroll)
    draws = draw(shard, 100).keys

    stats = shard.stats()

    assert (stats["gauges"]["oldest_version"], stats["gauges"]["newest_version"]) == (3, 8)
    masses, times = stats["histograms"]["masses"], stats["histograms"]["times_sampled"]
    assert {bin_: count for bin_, count in enumerate(masses) if count} == {15: 2, 17: 4}
    assert sum(times) == 6
    assert times[0] == 6 - len(set(draws))
    assert stats["histograms"]["versions_behind"][:4] == [3, 0, 0, 3]


def test_an_unroll_sent_twice_is_stored_once() -> None:
    shard = bandit_shard([1.0, 2.0])

    again = shard.insert(bandit_unroll([1.0, 2.0], sequence=0))

    assert not again.accepted
    assert draw(shard, 0).mass == 3.0
    assert shard.stats()["counts"]["unrolls_repeated"] == 1


def test_an_actor_that_was_replaced_writes_no_more() -> None:
    shard = bandit_shard([1.0])
    new = shard.insert(bandit_unroll([1.0], generation=2, sequence=0))
    old = shard.insert(bandit_unroll([1.0], generation=1, sequence=1))
    other = shard.insert(bandit_unroll([1.0], actor=7, generation=0))

    assert (new.accepted, old.accepted, other.accepted) == (True, False, True)
    assert shard.stats()["counts"]["unrolls_fenced_off"] == 1


def test_credit_falls_with_windows_and_rises_with_the_limit_that_a_request_brings() -> None:
    shard = make_shard(alpha=1.0, min_windows=9, shards=2, capacity=100)

    credits = [shard.credit(), shard.insert(bandit_unroll([1.0] * 3)).credit]
    credits.append(shard.insert(bandit_unroll([1.0] * 4, sequence=1)).credit)  # never refused
    draw(shard, 0, insert_limit=10)
    draw(shard, 0, insert_limit=10)  # said twice, it gives nothing twice

    assert [*credits, shard.credit()] == [5, 2, 0, 3]


def test_an_empty_shard_answers_with_no_windows() -> None:
    reply = draw(make_shard(Window(length=2)), 3, 4)

    assert list(reply.counts) == [0, 0]
    assert reply.columns["obs"].shape == (2, 0, 2)
    assert (reply.mass, reply.size) == (0.0, 0)


def test_the_same_seed_draws_the_same_windows() -> None:
    first, second = (draw(bandit_shard([1.0] * 50, seed=5), 20) for _ in range(2))

    np.testing.assert_array_equal(first.keys, second.keys)


def test_a_learner_that_was_replaced_draws_nothing_and_changes_nothing() -> None:
    shard = bandit_shard([1.0] * 8)
    draw(shard, 1, generation=1, insert_limit=50)
    before = shard.credit()

    reply = draw(shard, 4, generation=0, insert_limit=9_999)

    assert sum(reply.counts) == 0
    assert shard.credit() == before
    assert shard.stats()["counts"]["requests_fenced_off"] == 1
