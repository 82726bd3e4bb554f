import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.durable import DurableShard
from replay_server.restoring import restore_live
from starling.metrics import no_clock
from starling.wire import encode_unroll
from tests.replay_logs import WINDOW, assert_same_windows, durable, logged, names, senders, unrolls_of
from tests.replay_worlds import draw, make_shard

ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from(["send", "lose the reply", "send an old one", "kill"]), st.integers(0, 9)
    ),
    max_size=40,
)


@settings(max_examples=40)
@given(ACTIONS)
def test_whatever_calls_are_repeated_or_come_late_and_shards_die_each_unroll_is_stored_once(
    actions: list[tuple[int, str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, unrolls = Path(name), unrolls_of(120, actors=3)
        shard, order, sent = durable(folder), [], [0, 0, 0]
        for actor, action, back in actions:
            own = unrolls[actor::3]
            if action == "kill":  # nothing is closed: what was acknowledged must be there all the same
                again = make_shard(WINDOW, capacity=200)
                restore_live(again, folder)
                shard = durable(folder, again)
                continue
            if action == "send an old one":
                assert not sent[actor] or not shard.insert(own[max(0, sent[actor] - 1 - back)]).accepted
                continue
            if shard.insert(own[sent[actor]]).accepted:
                order.append(own[sent[actor]])
            sent[actor] += action == "send"  # who hears nothing sends the same again

        once = make_shard(WINDOW, capacity=200)
        for unroll in order:
            once.insert(unroll)

        records = logged(folder)
        assert len({*names(order)}) == len(order)
        assert senders(records) == names(order)[len(order) - len(records) :]
        assert_same_windows(shard, once)


def test_what_is_refused_is_not_logged(tmp_path: Path) -> None:
    old, new = unrolls_of(1)[0], unrolls_of(1, generation=1)[0]
    shard = durable(tmp_path)

    accepted = [shard.insert(unroll).accepted for unroll in (new, new, old)]

    assert accepted == [True, False, False]
    assert senders(logged(tmp_path)) == names([new])


def test_the_log_holds_the_very_bytes_that_came(tmp_path: Path) -> None:
    unroll = unrolls_of(1)[0]
    shard = durable(tmp_path)
    shard.insert(unroll, packed=bytes(encode_unroll(unroll)))
    shard.fill(unroll)

    first, second = logged(tmp_path)

    assert bytes(first.unroll) == bytes(second.unroll) == bytes(encode_unroll(unroll))
    assert (first.accounted, second.accounted) == (True, False)
    assert second.first_row == first.first_row + first.rows


def test_without_a_journal_a_snapshot_knows_only_where_the_shard_began() -> None:
    shard = DurableShard(make_shard(WINDOW), None, no_clock)
    shard.insert(unrolls_of(1)[0])
    shard.snapshot("a")

    meta = shard.taken("a")

    assert meta is not None
    assert meta.meta == {"origin": 0}
    assert "segments" not in shard.stats()["gauges"]


def test_a_snapshot_says_what_a_checkpoint_must_know(tmp_path: Path) -> None:
    shard = durable(tmp_path)
    for unroll in unrolls_of(5):
        shard.insert(unroll)
    shard.snapshot("a")

    meta = shard.taken("a")

    assert meta is not None
    assert set(meta.meta) == {"origin", "snapshot", "sha256", "records", "inserted", "size", "end"}
    assert (meta.meta["records"], meta.meta["end"]) == (5, shard.rows[1])
    assert meta.meta["size"] == draw(shard, 1).size
    assert not meta.arrays


def test_the_stats_say_what_the_log_costs(tmp_path: Path) -> None:
    ticks = iter(range(10_000))
    shard = durable(tmp_path, clock=lambda: float(next(ticks)))
    for unroll in unrolls_of(20):
        shard.insert(unroll)

    stats = shard.stats()

    files = list((tmp_path / "live").iterdir())
    assert stats["gauges"]["segments"] == len(files) > 1
    assert stats["gauges"]["log_bytes"] == sum(path.stat().st_size for path in files)
    assert stats["counts"]["unrolls_not_kept"] == 0
    assert stats["time_s"]["journaling"] > 0
    assert stats["notes"] == []


def test_a_shard_that_was_not_restored_may_not_write_into_the_log_of_another(tmp_path: Path) -> None:
    shard = durable(tmp_path)
    shard.insert(unrolls_of(1)[0])
    shard.close()

    with pytest.raises(AssertionError, match="the log knows rows that the shard does not"):
        durable(tmp_path)
