"""A read-only view of the replay's folder, of a run that is over or under way: for inspection and export."""

from collections.abc import Iterator
from pathlib import Path

from replay_server.log import LIVE, LogReader, segment_paths
from replay_server.segments import Record, Segment, SegmentReader
from replay_server.snapshots import SNAPSHOTS, read_snapshot, snapshot_paths
from starling.errors import RunError
from starling.state import State


class Contents:
    """The shards of a folder `replay/`: as they are now, or as they were at a snapshot."""

    def __init__(self, folder: Path, snapshot: str | None = None) -> None:
        self.shards = [ShardContents(path, snapshot) for path in shard_folders(folder)]
        if not self.shards:
            raise RunError(f"{folder} holds no shard of a replay")


class ShardContents:
    """One shard: its index, its segments, and its records, oldest first.

    Now: `index` is that of the newest snapshot that can be trusted, None before the first one, and knows nothing of
    the newest rows. A live log ends where its shard is writing, and segments may go while they are looked at: both is
    no damage. At a snapshot everything must be as it was written.
    """

    def __init__(self, folder: Path, snapshot: str | None = None) -> None:
        self.folder = folder
        self.index: State | None = None
        self._listed: list[Segment] | None = None
        self._place = folder / LIVE
        if snapshot is None:
            self.index = _newest_index(folder)
        else:
            self._place = folder / SNAPSHOTS / snapshot
            self.index, self._listed = read_snapshot(self._place)

    @property
    def segments(self) -> list[Segment]:
        """Each file with its bytes, records, and first and last rows."""
        if self._listed is not None:
            return self._listed
        readers = [SegmentReader(path, headers_only=True) for path in segment_paths(self._place)]
        return [reader.segment for reader in readers if sum(1 for _ in _while_there(reader))]

    def records(self) -> Iterator[Record]:
        """Read the unrolls as they came; RunError where something is damaged."""
        if self._listed is not None:
            yield from LogReader([self._place / segment.file for segment in self._listed], self._listed)
            return
        for path in segment_paths(self._place):
            yield from _while_there(SegmentReader(path))


def shard_folders(folder: Path) -> list[Path]:
    """Return the folders of a replay's shards in the order of their numbers."""
    return sorted(folder.glob("shard-*"), key=lambda path: (len(path.name), path.name))


def _newest_index(folder: Path) -> State | None:
    for path in snapshot_paths(folder):
        try:
            return read_snapshot(path)[0]
        except RunError:
            continue  # of no concern to who only looks: restoring says so
    return None


def _while_there(reader: SegmentReader) -> Iterator[Record]:
    """Read a live segment, unless its shard has let it go by now."""
    try:
        yield from reader
    except RunError:
        if reader.path.exists():
            raise
