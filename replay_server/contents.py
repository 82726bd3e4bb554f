"""A read-only view of a shard's folder, of a run that is over or under way: for inspection and export."""

from collections.abc import Iterator
from pathlib import Path

from replay_server.log import live_folder, segment_paths
from replay_server.segments import Record, SegmentReader
from replay_server.snapshots import newest_snapshot
from starling.errors import RunError
from starling.state import State


class ShardContents:
    """One shard as it is now: its segments, its records, oldest first, and an index.

    `index` is that of the newest snapshot that can be trusted and is of this log, None before the first one, and knows
    nothing of the newest rows. A log ends where its shard is writing, and segments may go while they are looked at:
    both is no damage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshot: str | None = None  # that the index is of
        self.index: State | None = None
        readers = [SegmentReader(path, headers_only=True) for path in segment_paths(live_folder(folder))]
        passes = {reader.segment.end for reader in readers for _ in _while_there(reader)}
        self.segments = [reader.segment for reader in readers if reader.segment.records]
        if found := newest_snapshot(folder, passes, notes=[]):  # damage is of no concern here: restoring says so
            self.snapshot, self.index = found

    def records(self) -> Iterator[Record]:
        """Read the unrolls as they came; RunError where something is damaged."""
        for path in segment_paths(live_folder(self.folder)):
            yield from _while_there(SegmentReader(path))


def shard_folders(folder: Path) -> list[Path]:
    """Return the folders of a replay's shards in the order of their numbers."""
    found = {path.name.removeprefix("shard-"): path for path in folder.glob("shard-*")}
    return [found[number] for number in sorted(filter(str.isdecimal, found), key=int)]


def _while_there(reader: SegmentReader) -> Iterator[Record]:
    """Read a live segment, unless its shard has let it go by now."""
    try:
        yield from reader
    except RunError:
        if reader.path.exists():
            raise
