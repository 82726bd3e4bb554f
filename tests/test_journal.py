import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from replay_server.journal import BACKLOG_BYTES
from replay_server.log import LIVE, segment_paths
from replay_server.restoring import restore_exactly, restore_live
from replay_server.segments import Position, segment_name
from replay_server.shard import ReplayShard
from replay_server.snapshots import SNAPSHOTS, prune_snapshots
from starling.errors import RunError
from starling.failpoints import DIED, NAMES, arm
from starling.types import Unroll
from tests.replay_logs import WINDOW, assert_same_windows, durable, logged, names, senders, taken, unrolls_of
from tests.replay_worlds import make_shard

KILLS = int(os.environ.get("STARLING_KILLS", "3"))
POINTS = [name for name in NAMES if name.startswith("replay.")]
FORKED = multiprocessing.get_context("fork")
FULL = OSError(errno.ENOSPC, "No space left on device")


@dataclass
class Disk:
    """A disk of which a test says how much room it has, and that counts how often it was forced."""

    room: int = 1 << 40
    may_go_on: Event = field(default_factory=Event)
    syncs: int = 0

    def __post_init__(self) -> None:
        self.may_go_on.set()

    def write(self, file: int, parts: Sequence[memoryview]) -> int:
        assert self.may_go_on.wait(10.0)
        fits = b"".join(parts)[: self.room]
        if not fits:
            raise FULL
        self.room -= len(fits)
        return os.write(file, fits)

    def sync(self, file: int) -> None:
        self.syncs += 1
        os.fsync(file)

    def calls(self) -> dict[str, Any]:
        return {"write": self.write, "sync": self.sync}


@dataclass
class Hand:
    """A clock that a test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def wait_until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10.0
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("background", [False, True])
def test_in_a_journal_an_unroll_is_written_when_it_is_acknowledged(background: bool, tmp_path: Path) -> None:
    unrolls = unrolls_of(5)
    shard = durable(tmp_path, background=background)

    for n, unroll in enumerate(unrolls):
        assert shard.insert(unroll).accepted
        assert senders(logged(tmp_path)) == names(unrolls[: n + 1])
    shard.close()


def test_for_snapshots_an_unroll_is_written_behind_the_acknowledgement(tmp_path: Path) -> None:
    unrolls, disk = unrolls_of(5), Disk()
    disk.may_go_on.clear()
    shard = durable(tmp_path, background=True, durability="snapshot", journal=disk.calls())
    replies = [shard.insert(unroll) for unroll in unrolls]
    before = logged(tmp_path)

    disk.may_go_on.set()
    shard.close()

    assert all(reply.accepted and reply.credit for reply in replies)
    assert before == []
    assert senders(logged(tmp_path)) == names(unrolls)


def test_writers_wait_while_too_much_waits_for_the_disk(tmp_path: Path) -> None:
    disk = Disk()
    disk.may_go_on.clear()
    shard = durable(tmp_path, background=True, durability="snapshot", journal=disk.calls())
    first, second, third = unrolls_of(3, actors=1)

    free = shard.insert(first)
    full = shard.insert(second, packed=np.zeros(BACKLOG_BYTES, np.uint8))
    credit = shard.credit()
    disk.may_go_on.set()
    wait_until(shard.credit)

    assert (free.waits, free.credit > 0) == ("", True)
    assert (full.accepted, full.credit, full.waits, credit) == (True, 0, "its disk", 0)
    assert shard.insert(third).waits == ""
    shard.close()


def test_the_disk_is_forced_once_in_each_interval_and_not_when_nothing_was_written(tmp_path: Path) -> None:
    disk, clock = Disk(), Hand()
    shard = durable(tmp_path, clock=clock, fsync_every_s=1.0, segment_bytes=1 << 20, journal=disk.calls())
    counts = []

    for n, unroll in enumerate(unrolls_of(9)):
        clock.now = n / 4
        shard.insert(unroll)
        counts.append(disk.syncs)

    assert counts == [0, 0, 0, 0, 2, 2, 2, 2, 3]  # the first time the folder too, for the new file's name


def test_with_an_interval_of_zero_each_insert_is_forced_before_it_is_acknowledged(tmp_path: Path) -> None:
    for background in (False, True):
        disk = Disk()
        shard = durable(
            tmp_path / str(background), background=background, fsync_every_s=0.0, journal=disk.calls(),
            segment_bytes=1 << 20,
        )  # fmt: skip
        for n, unroll in enumerate(unrolls_of(4)):
            shard.insert(unroll)
            assert disk.syncs == 2 + n
        shard.close()


def test_a_background_thread_forces_the_disk_by_itself(tmp_path: Path) -> None:
    disk = Disk()
    shard = durable(tmp_path, background=True, fsync_every_s=0.001, clock=time.monotonic, journal=disk.calls())

    shard.insert(unrolls_of(1)[0])

    wait_until(lambda: disk.syncs)
    shard.close()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("durability", ["journal", "snapshot"])
def test_segments_go_when_none_of_their_rows_is_alive(durability: str, background: bool, tmp_path: Path) -> None:
    shard = durable(tmp_path, background=background, durability=durability, capacity=60)
    unrolls = unrolls_of(40)
    for unroll in unrolls:
        shard.insert(unroll)
    shard.close()

    records = logged(tmp_path)

    oldest, end = shard.rows
    assert 0 < records[0].first_row <= oldest
    assert records[-1].first_row + records[-1].rows == end
    segments = shard.stats()["gauges"]["segments"]
    assert segments == len(segment_paths(tmp_path / LIVE)) > 1
    assert senders(records) == names(unrolls[-len(records) :])


def test_on_a_full_disk_the_shard_goes_on_and_the_log_when_there_is_room(tmp_path: Path) -> None:
    unrolls, disk = unrolls_of(30, actors=3), Disk()
    shard = durable(tmp_path, segment_bytes=1 << 20, journal=disk.calls())
    for n, unroll in enumerate(unrolls):
        disk.room = {10: 700, 20: 1 << 40}.get(n, disk.room)  # less than one record, in the middle of it
        assert shard.insert(unroll).accepted
    stats = shard.stats()
    shard.close()

    again = make_shard(WINDOW, capacity=200)
    restored = restore_live(again, tmp_path)

    kept = unrolls[:10] + unrolls[20:]
    assert stats["counts"]["unrolls_inserted"] == 30
    assert stats["counts"]["unrolls_not_kept"] == 10
    (note,) = stats["notes"]
    assert note == (
        f"the log of {tmp_path} cannot be written (No space left on device): "
        "what is inserted is kept in memory alone until it can"
    )
    assert senders(logged(tmp_path)) == names(kept)
    assert (restored.records, restored.torn_bytes, restored.notes) == (20, 0, [])
    assert again.rows[1] == shard.rows[1]
    mine, theirs = again.index().arrays["masses"], shard.index().arrays["masses"]
    assert set(np.flatnonzero(mine)) <= set(np.flatnonzero(theirs))


def test_new_trouble_is_said_anew(tmp_path: Path) -> None:
    disk = Disk()
    shard = durable(tmp_path, journal=disk.calls())

    for n, unroll in enumerate(unrolls_of(12)):
        disk.room = 0 if n % 4 == 3 else 1 << 40
        shard.insert(unroll)

    assert len(shard.stats()["notes"]) == shard.stats()["counts"]["unrolls_not_kept"] == 3


def test_a_file_that_cannot_be_forced_keeps_no_later_one_from_the_disk(tmp_path: Path) -> None:
    first, forced = segment_name(Position().serial), set[str]()

    def sync(file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        if path.endswith(first):
            raise OSError(errno.EIO, "Input/output error")
        forced.add(path)

    shard = durable(tmp_path, journal={"sync": sync}, fsync_every_s=1e9, segment_bytes=1)
    for unroll in unrolls_of(5):
        shard.insert(unroll)
    shard.close()

    assert {str(path) for path in segment_paths(tmp_path / LIVE)[1:]} <= forced
    assert "cannot be forced to the disk (Input/output error)" in shard.stats()["notes"][0]


def test_a_snapshot_that_cannot_be_written_fails_and_a_later_one_does_not(tmp_path: Path) -> None:
    broken = [True]

    def sync(file: int) -> None:
        if broken[0]:
            raise OSError(errno.EIO, "Input/output error")
        os.fsync(file)

    shard = durable(tmp_path, journal={"sync": sync}, fsync_every_s=1e9)
    shard.insert(unrolls_of(1)[0])

    shard.snapshot("a")
    with pytest.raises(RunError, match=f"^snapshot a of {tmp_path} was not taken: Input/output error$"):
        shard.taken("a")
    broken[0] = False

    assert taken(shard, "b").meta["records"] == 1


def test_a_snapshot_that_the_disk_has_no_room_for_holds_on_to_nothing(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOTS).mkdir()
    full = [False]

    def sync(file: int) -> None:
        if full[0] and SNAPSHOTS in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    shard = durable(tmp_path, journal={"sync": sync})
    shard.insert(unrolls_of(1)[0])
    full[0] = True

    shard.snapshot("a")
    with pytest.raises(RunError, match="No space left on device"):
        shard.taken("a")

    assert list((tmp_path / SNAPSHOTS).iterdir()) == []


def test_a_snapshot_does_not_wait_and_holds_what_was_inserted_before_it(tmp_path: Path) -> None:
    disk, unrolls = Disk(), unrolls_of(8)
    shard = durable(tmp_path, background=True, durability="snapshot", journal=disk.calls())
    for unroll in unrolls[:4]:
        shard.insert(unroll)
    disk.may_go_on.clear()
    shard.insert(unrolls[4])
    shard.snapshot("a")
    now = shard_with(unrolls[:5], capacity=200)
    shard.insert(unrolls[5])
    under_way = shard.taken("a")
    disk.may_go_on.set()
    wait_until(lambda: shard.taken("a"))
    shard.close()

    meta = shard.taken("a")

    assert under_way is None
    assert meta is not None
    assert meta.meta["records"] == 5
    again = make_shard(WINDOW, capacity=200)
    restore_exactly(again, tmp_path, meta.meta)
    assert_same_windows(again, now)


def test_a_snapshot_of_the_same_moment_is_the_same_and_one_of_another_gets_another_name(tmp_path: Path) -> None:
    shard = durable(tmp_path)
    first, second = unrolls_of(2)
    shard.insert(first)
    one = taken(shard, "a").meta
    again = taken(shard, "a").meta
    shard.insert(second)
    other = taken(shard, "a").meta

    assert one == again
    assert [one["snapshot"], other["snapshot"]] == ["a", "a.1"]
    assert one["sha256"] != other["sha256"]


@pytest.mark.parametrize("background", [False, True])
def test_a_snapshot_that_no_checkpoint_will_name_is_removed(background: bool, tmp_path: Path) -> None:
    shard = durable(tmp_path, background=background)
    for name, unroll in zip("abc", unrolls_of(3), strict=True):
        shard.insert(unroll)
        shard.snapshot(name)
        if name == "b":
            shard.drop("b")  # whether or not it is written by now
    shard.close()

    assert {path.name for path in (tmp_path / SNAPSHOTS).iterdir()} == {"a", "c"}


def test_without_links_a_snapshot_holds_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    shard = durable(tmp_path)
    for unroll in unrolls_of(20):
        shard.insert(unroll)
    meta = taken(shard, "a").meta
    copies = list((tmp_path / SNAPSHOTS / "a").glob("*.seg"))

    again = make_shard(WINDOW, capacity=200)
    restore_exactly(again, tmp_path, meta)

    assert len(copies) > 1
    assert all(path.stat().st_nlink == 1 for path in copies)
    assert_same_windows(again, shard)


def live_on(folder: Path, say: Callable[[str], object], unrolls: list[Unroll]) -> None:
    """Insert, take a snapshot at every fifth unroll, remove the one before, and restore: all that is durable."""
    shard = durable(folder, capacity=60)
    for n, unroll in enumerate(unrolls):
        shard.insert(unroll)
        say(f"insert {n}\n")
        if n % 5 == 4:
            meta = taken(shard, f"at-{n}").meta
            say(f"snapshot {meta['snapshot']} {meta['sha256']} {n}\n")
            prune_snapshots(folder, {meta["snapshot"]})
    shard.close()
    restore_exactly(make_shard(WINDOW, capacity=60), folder, meta)


def die_at(failpoint: str, folder: Path, unrolls: list[Unroll]) -> list[list[str]]:
    """Let another process live until the failpoint; returns what it said."""
    path = folder / "said"

    def child() -> None:
        arm(failpoint)
        with path.open("w", buffering=1) as file:
            live_on(folder / "shard-0", file.write, unrolls)

    process = FORKED.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == DIED
    return [line.split() for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("point", "nth"),
    [*((point, 1) for point in POINTS), *((point, 2) for point in POINTS if "live" not in point)],
)
def test_a_shard_that_dies_at_a_durable_step_comes_back_with_all_that_it_acknowledged(
    point: str, nth: int, tmp_path: Path
) -> None:
    unrolls = unrolls_of(30)
    lines, folder = die_at(f"{point}:{nth}", tmp_path, unrolls), tmp_path / "shard-0"
    acknowledged = sum(line[0] == "insert" for line in lines)
    snapshots = [line[1:] for line in lines if line[0] == "snapshot"]

    restored = restore_live(make_shard(WINDOW, capacity=60), folder)

    assert restored.notes == []
    assert not list(folder.rglob(".*"))
    stored = logged(folder)
    end = stored[-1].serial + 1 if stored else 0
    assert end in {acknowledged, acknowledged + 1}
    assert senders(stored) == names(unrolls[end - len(stored) : end])
    for name, sha256, at in snapshots[-1:]:
        exact = make_shard(WINDOW, capacity=60)
        restore_exactly(exact, folder, {"snapshot": name, "sha256": sha256})
        assert_same_windows(exact, shard_with(unrolls[: int(at) + 1]))


def shard_with(unrolls: list[Unroll], capacity: int = 60) -> ReplayShard:
    shard = make_shard(WINDOW, capacity=capacity)
    for unroll in unrolls:
        shard.insert(unroll)
    return shard


def test_what_was_acknowledged_survives_kill_9_once(tmp_path: Path) -> None:
    rng, total = random.Random(5), 0
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        folder.mkdir()
        acknowledged = insert_until_killed(folder, rng.uniform(0.02, 0.3))
        total += acknowledged

        shard = make_shard(WINDOW, capacity=100_000)
        restore_live(shard, folder)

        stored = senders(logged(folder))
        assert len(set(stored)) == len(stored)
        assert stored == [(0, 0, n) for n in range(len(stored))]
        assert acknowledged <= len(stored) <= acknowledged + 1
    print(f"{KILLS} kills, {total} unrolls acknowledged, lost 0, duplicated 0")


def insert_until_killed(folder: Path, seconds: float) -> int:
    """Let a process insert for some time after its first unroll; returns how many it acknowledged."""
    (unroll,) = unrolls_of(1, actors=1)
    read, write = os.pipe()

    def child() -> None:
        os.close(read)
        shard = durable(folder, background=True, capacity=100_000, segment_bytes=20_000, clock=time.monotonic)
        for sequence in range(10_000):  # fewer than the shard has room for
            shard.insert(Unroll(**{**fields_of(unroll), "sequence": sequence}))
            os.write(write, b".")
        signal.pause()

    process = FORKED.Process(target=child)
    process.start()
    os.close(write)
    acknowledged = len(os.read(read, 1))
    time.sleep(seconds)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while piece := os.read(read, 1 << 16):
        acknowledged += len(piece)
    os.close(read)
    return acknowledged


def fields_of(unroll: Unroll) -> dict[str, Any]:
    return {name: getattr(unroll, name) for name in ("actor", "generation", "columns", "final_at", "final_obs")}
