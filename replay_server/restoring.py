"""How a shard gets back what it held: from its log and a snapshot's index; nothing damaged gets back unseen."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_server.durable import DurableShard
from replay_server.log import LIVE, LogReader, replace_live, segment_paths, settle_live
from replay_server.segments import Position, Record, Segment
from replay_server.shard import ReplayShard
from replay_server.snapshots import SNAPSHOTS, newest_snapshot, read_snapshot, remove_unfinished
from starling.errors import CodecError, RunError
from starling.packed import PackedUnroll
from starling.state import State
from starling.wire import decode_packed

Meta = Mapping[str, Any]


class Restored(NamedTuple):
    """What came back."""

    records: int
    rows: int
    torn_bytes: int  # of an unroll that was being written, and so was not acknowledged
    notes: list[str]  # what was lost, in sentences


def restore_exactly(shard: ReplayShard, folder: Path, meta: Meta) -> Restored:
    """Fill an empty shard with what it held at a snapshot, account and random numbers included.

    Afterwards the live log holds the snapshot's records and no others. The writers are forgotten: they begin anew.
    """
    settle(folder)
    return _restore(shard, _past(folder, meta, tail=False))


def restore_newest(shard: ReplayShard, folder: Path, meta: Meta | None) -> Restored:
    """Fill an empty shard with what it held at a snapshot and all that its log took since; a torn end is cut off.

    The account is the snapshot's, so what came since is no debt. The writers are forgotten: they begin anew.
    """
    settle(folder)
    return _restore(shard, _past(folder, meta, tail=True))


def restore_live(shard: ReplayShard, folder: Path) -> Restored:
    """Fill an empty shard that takes a dead one's place in a run: with its log, as far as it can be trusted.

    Priorities are those of the newest snapshot. The writers are remembered: what they send again is stored once. The
    account begins anew. Whatever is behind damage is lost, and the notes say so.
    """
    settle(folder)
    notes: list[str] = []
    counts, passes = _Counts(), {Position()}
    log = LogReader(segment_paths(folder / LIVE))
    try:
        _refill(shard, _passing(log, passes), folder, counts)
    except RunError as damage:
        notes.append(f"{damage}; what was inserted after it is lost")
    if found := newest_snapshot(folder, passes, notes):
        _lay(shard, found[1], account=False, writers=True, tail=True)
    replace_live(folder, [(folder / LIVE / segment.file, segment.bytes) for segment in log.segments if segment.records])
    return Restored(counts.records, counts.rows, log.torn_bytes, notes)


def settle(folder: Path) -> None:
    """Bring a shard's folder into order in which a process died: nothing is left half done."""
    settle_live(folder)
    remove_unfinished(folder)


def rehash(
    shard: DurableShard,
    folders: Sequence[Path],
    metas: Sequence[Meta | None],
    mine: Callable[[int], bool],
    tails: bool = True,
) -> Restored:
    """Take over from other shards what the actors wrote that are `mine`, and write it into this shard's own log.

    Oldest first, in proportion over the folders, so that what does not fit is the oldest of each. The folders are only
    read, by several shards at once; each must be settled, and none may be this shard's own. With `tails` what came
    after the snapshots counts too.
    """
    pasts = [_past(folder, meta, tails) for folder, meta in zip(folders, metas, strict=True)]
    counts = _Counts()
    moved: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for _, record, past in heapq.merge(*(past.by_age() for past in pasts), key=lambda aged: aged[0]):
        unroll = _unroll(record, past.folder)
        if mine(unroll.actor):
            first, rows = shard.fill(unroll, record.unroll)
            counts.add(record)
            if past.index:
                moved.append((np.arange(first, first + rows), _masses_of(past.index, _rows(record))))
    if moved:
        rows_now, masses = (np.concatenate(columns) for columns in zip(*moved, strict=True))
        known = (masses > 0.0) & (_masses_of(shard.index(), rows_now) > 0.0)  # its stream may be cut now
        shard.set_masses(rows_now[known], masses[known])
    torn_bytes = sum(past.torn_bytes for past in pasts)
    return Restored(counts.records, counts.rows, torn_bytes, [note for past in pasts for note in past.notes])


@dataclass(slots=True)
class _Counts:
    records: int = 0
    rows: int = 0

    def add(self, record: Record) -> None:
        self.records += 1
        self.rows += record.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    """What a shard's folder says of it."""

    folder: Path
    index: State | None
    parts: list[tuple[Path, Segment]]
    tail: bool = False  # whether the parts may hold more than the index knows
    retired_row: int = 0  # rows before it are not in the parts, and so must be dead
    torn_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def records(self) -> Iterator[Record]:
        """Read what the parts hold, and nothing else."""
        yield from LogReader([path for path, _ in self.parts], [segment for _, segment in self.parts])

    def by_age(self) -> Iterator[tuple[float, Record, "_Past"]]:
        """Read what the shard still held, with each record's place between the oldest, 0, and the newest, 1."""
        if not self.parts:
            return
        end = self.parts[-1][1].end_row
        capacity = self.index.meta.get("capacity", end) if self.index else end  # as far as anybody knows
        first = max(self.parts[0][1].first_row, end - capacity)  # a segment outlives most of its rows
        for record in self.records():
            if record.first_row + record.rows > first:
                yield (record.first_row - first) / max(1, end - first), record, self


def _past(folder: Path, meta: Meta | None, tail: bool) -> _Past:
    """Find what a shard held at a snapshot, if there is one, and with `tail` also what its log took since."""
    if meta is None or "snapshot" not in meta:
        parts, torn_bytes, _ = _live(folder, "") if tail else ([], 0, set())
        return _Past(folder=folder, index=None, parts=parts, torn_bytes=torn_bytes)
    place = folder / SNAPSHOTS / meta["snapshot"]
    index, segments = read_snapshot(place, meta["sha256"])
    listed = [(place / segment.file, segment) for segment in segments]
    if not tail:
        return _Past(folder=folder, index=index, parts=listed)
    last = segments[-1] if segments else None
    live, torn_bytes, passes = _live(folder, last.file if last else "")
    if last is None or last.end in passes:
        return _Past(folder=folder, index=index, parts=[*listed[:-1], *live], tail=True, torn_bytes=torn_bytes)
    if live and live[0][1].file > last.file:
        return _Past(folder=folder, index=index, parts=live, tail=True, retired_row=last.end_row, torn_bytes=torn_bytes)
    note = f"{folder / LIVE} does not go on from snapshot {place.name}: what was inserted after the snapshot is lost"
    return _Past(folder=folder, index=index, parts=listed, notes=[note])


def _live(folder: Path, since: str) -> tuple[list[tuple[Path, Segment]], int, set[Position]]:
    """Return the live segments from a file on, the bytes of a torn end, and where the log may be gone on from."""
    paths = [path for path in segment_paths(folder / LIVE) if path.name >= since]
    log = LogReader(paths, headers_only=True)
    passes: set[Position] = set()
    for _ in _passing(log, passes):
        pass  # headers say enough
    parts = [part for part in zip(paths, log.segments, strict=True) if part[1].records]
    return parts, log.torn_bytes, passes


def _restore(shard: ReplayShard, past: _Past) -> Restored:
    counts = _Counts()
    _refill(shard, past.records(), past.folder, counts)
    oldest, end = shard.rows
    if past.index and past.retired_row > (alive := max(0, end - past.index.meta.get("capacity", end))):
        raise RunError(f"{past.folder / LIVE} is damaged: rows {alive} to {past.retired_row - 1} are missing")
    if past.index:
        _lay(shard, past.index, account=True, writers=False, tail=past.tail)
    shard.forget_writers()
    replace_live(past.folder, [(path, part.bytes) for path, part in past.parts if part.end_row > oldest])
    return Restored(counts.records, counts.rows, past.torn_bytes, past.notes)


def _refill(shard: ReplayShard, records: Iterable[Record], folder: Path, counts: _Counts) -> None:
    for record in records:
        shard.refill(_unroll(record, folder), record.first_row)
        if shard.rows[1] != record.first_row + record.rows:
            raise RunError(f"record {record.serial} of {folder} does not fit the settings: its rows are others now")
        counts.add(record)


def _unroll(record: Record, folder: Path) -> PackedUnroll:
    try:
        return decode_packed(record.unroll)
    except CodecError as error:
        raise RunError(f"record {record.serial} of {folder} holds no unroll: {error}") from None


def _passing(log: LogReader, passes: set[Position]) -> Iterator[Record]:
    """Read a log, and remember from where it could have been gone on."""
    for record in log:
        passes.add(log.end)
        yield record


def _lay(shard: ReplayShard, index: State, account: bool, writers: bool, tail: bool) -> None:
    """Lay an index over the windows that are there: where the log has a gap, there may be fewer than it knows.

    With a `tail` there may also be more, which were not whole yet; those keep what they came with.
    """
    rows = np.arange(index.meta["first"], index.meta["end"])
    there, known = _masses_of(shard.index(), rows), index.arrays["masses"]
    masses = np.where((there > 0.0) & (known > 0.0), known, there if tail else 0.0)
    shard.adopt(State({**index.arrays, "masses": masses}, index.meta), account, writers)


def _masses_of(index: State, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the masses of rows, 0 for those that the index does not know."""
    at = rows - index.meta["first"]
    masses = index.arrays["masses"]
    inside = (at >= 0) & (at < len(masses))
    found: NDArray[np.float64] = np.where(inside, masses.take(at, mode="clip") if len(masses) else 0.0, 0.0)
    return found


def _rows(record: Record) -> NDArray[np.int64]:
    return np.arange(record.first_row, record.first_row + record.rows)
