from pathlib import Path

import pytest

from replay_server.contents import Contents
from replay_server.log import LIVE, segment_paths
from replay_server.snapshots import SNAPSHOTS
from starling.errors import RunError
from tests.replay_logs import durable, names, senders, taken, unrolls_of


def test_the_folder_of_a_run_under_way_can_be_read(tmp_path: Path) -> None:
    unrolls = unrolls_of(30)
    shards = [durable(tmp_path / f"shard-{n}", capacity=60) for n in range(2)]
    for n, shard in enumerate(shards):
        for unroll in unrolls[: 30 - n]:
            shard.insert(unroll)
    taken(shards[1], "a")

    first, second = Contents(tmp_path).shards

    stored = senders(list(first.records()))
    assert stored == names(unrolls)[30 - len(stored) :]
    assert sum(segment.records for segment in first.segments) == len(stored)
    assert (first.segments[0].first_row, first.segments[-1].end_row) == (
        next(iter(first.records())).first_row,
        shards[0].rows[1],
    )
    assert first.index is None
    assert second.index is not None
    assert second.index.meta["end"] == shards[1].rows[1]


def test_a_snapshot_is_read_as_it_was(tmp_path: Path) -> None:
    unrolls = unrolls_of(30)
    shard = durable(tmp_path / "shard-0")
    for unroll in unrolls[:10]:
        shard.insert(unroll)
    taken(shard, "a")
    for unroll in unrolls[10:]:
        shard.insert(unroll)

    (contents,) = Contents(tmp_path, "a").shards

    assert senders(list(contents.records())) == names(unrolls[:10])
    assert contents.index is not None
    assert sum(segment.records for segment in contents.segments) == 10


def test_the_end_that_is_being_written_and_segments_that_go_meanwhile_are_no_damage(tmp_path: Path) -> None:
    unrolls = unrolls_of(30)
    shard = durable(tmp_path / "shard-0")
    for unroll in unrolls:
        shard.insert(unroll)
    first, second, *_, last = segment_paths(tmp_path / "shard-0" / LIVE)
    last.write_bytes(last.read_bytes()[:-5])
    (contents,) = Contents(tmp_path).shards
    records = contents.records()
    begun = next(records)
    second.unlink()

    found = senders([begun, *records])

    assert found[0] == names(unrolls)[int(first.stem)]
    assert found[-1] == names(unrolls)[-2]
    assert len(contents.segments) == len(segment_paths(tmp_path / "shard-0" / LIVE))


def test_damage_is_named(tmp_path: Path) -> None:
    shard = durable(tmp_path / "shard-0")
    for unroll in unrolls_of(3):
        shard.insert(unroll)
    taken(shard, "a")
    (segment, *_) = segment_paths(tmp_path / "shard-0" / SNAPSHOTS / "a")
    segment.write_bytes(segment.read_bytes()[:300] + b"?" + segment.read_bytes()[301:])

    for snapshot in (None, "a"):
        (contents,) = Contents(tmp_path, snapshot).shards
        with pytest.raises(RunError, match=rf"{segment.name} is damaged at byte \d+: "):
            list(contents.records())


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"^{tmp_path} holds no shard of a replay$"):
        Contents(tmp_path)
