"""A shard's live log: the folder of its segments, to append to and to read."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

from replay_server.segments import (
    SUFFIX,
    Position,
    Record,
    Segment,
    SegmentReader,
    SegmentWriter,
    Sync,
    Write,
    damaged,
    sync_folder,
)
from starling.codec import Octets
from starling.errors import RunError
from starling.failpoints import reach

LIVE = "live"
NEW_LIVE, GONE_LIVE = f".{LIVE}", f".gone-{LIVE}"  # while one replaces the other
SEGMENT_BYTES = 32 << 20


class LiveLog:
    """Appends records to the newest segment, begins another when it is full, and forgets the oldest ones.

    After a write that failed the next one begins a segment anew. Called by one thread, but for `sync`, which any
    other one may call meanwhile.
    """

    def __init__(
        self,
        folder: Path,
        segment_bytes: int = SEGMENT_BYTES,
        write: Write = os.writev,
        sync: Sync = os.fsync,
    ) -> None:
        self._folder = folder / LIVE
        self._segment_bytes = segment_bytes
        self._write, self._sync = write, sync
        settle_live(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        log = LogReader(segment_paths(self._folder), headers_only=True)
        for _ in log:
            pass  # only to see where it ends
        if log.torn_bytes:
            raise RunError(f"{self._folder} has a torn end: it must be restored before it is appended to")
        self._closed = [segment for segment in log.segments if segment.records]
        self._end = log.end
        self._writer: SegmentWriter | None = None
        self._unsynced: list[SegmentWriter] = []
        self._syncing = Lock()

    @property
    def segments(self) -> list[Segment]:
        """Every segment with a record, the oldest first, as they are at this moment."""
        writer = self._writer
        return [*self._closed, writer.segment] if writer else list(self._closed)

    @property
    def unsynced_files(self) -> int:
        """How many files are open, to be forced to the disk."""
        return len(self._unsynced)

    @property
    def end_row(self) -> int:
        """The row behind the last one that was appended."""
        return self.segments[-1].end_row if self.segments else 0

    def append(self, first_row: int, rows: int, accounted: bool, unroll: Octets) -> None:
        """Write a record, or raise OSError and have nothing written."""
        if self._writer and (self._writer.failed or self._writer.segment.bytes >= self._segment_bytes):
            self._finish(self._writer)
        if self._writer is None:
            self._writer = self._begin_with(first_row, rows, accounted, unroll)
            self._unsynced.append(self._writer)
        else:
            self._writer.append(first_row, rows, accounted, unroll)

    def retire(self, oldest_row: int) -> list[Path]:
        """Forget the oldest segments of which no row is alive; returns their files, which are to be removed."""
        if not self._closed or self._closed[0].end_row > oldest_row:
            return []
        dead = 1
        while dead < len(self._closed) and self._closed[dead].end_row <= oldest_row:
            dead += 1
        gone, self._closed = self._closed[:dead], self._closed[dead:]
        return [self._folder / segment.file for segment in gone]

    def sync(self) -> None:
        """Force to the disk all that was appended before; raises the first error, after every file was tried.

        A file that is finished is let go of in any case: one that cannot be forced would only hold a descriptor.
        """
        errors = []
        with self._syncing:
            for writer in list(self._unsynced):
                finished = writer is not self._writer  # asked first: afterwards nothing is written to it
                try:
                    writer.sync()
                except OSError as error:
                    errors.append(error)
                if finished:
                    self._unsynced.remove(writer)
                    writer.close()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Let go of all files, without forcing them to the disk."""
        for writer in self._unsynced:
            writer.close()
        self._unsynced = []

    def _begin_with(self, first_row: int, rows: int, accounted: bool, unroll: Octets) -> SegmentWriter:
        writer = SegmentWriter(self._folder, self._end, self._write, self._sync)
        try:
            writer.append(first_row, rows, accounted, unroll)
        except OSError:
            writer.close()  # at once: on a full disk every append comes by here
            raise
        return writer

    def _finish(self, writer: SegmentWriter) -> None:
        self._closed.append(writer.segment)
        self._end = writer.segment.end
        self._writer = None


class LogReader:
    """Yields the records of segments in order, each proven to follow the one before it.

    `segments` is what was read so far, file by file. Files are read to their end or, if `listed`, exactly as far as is
    listed.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        listed: Sequence[Segment] | None = None,
        headers_only: bool = False,
    ) -> None:
        self.torn_bytes = 0
        self._paths = paths
        self._listed = listed
        self._headers_only = headers_only
        self._readers: list[SegmentReader] = []

    @property
    def segments(self) -> list[Segment]:
        """What was read so far, file by file."""
        return [reader.segment for reader in self._readers]

    @property
    def end(self) -> Position:
        """Where the log goes on."""
        return self._reached() or Position()

    def __iter__(self) -> Iterator[Record]:
        for index, path in enumerate(self._paths):
            yield from self._read(path, self._listed[index] if self._listed else None)

    def _read(self, path: Path, listed: Segment | None) -> Iterator[Record]:
        before = self._reached()
        reader = SegmentReader(path, listed.bytes if listed else None, self._headers_only)
        self._readers.append(reader)
        for record in reader:
            if before and reader.segment.records == 1:
                self._require_follows(path, before, reader.begin)
            yield record
        if reader.begin and before:
            self._require_follows(path, before, reader.begin)
        if listed and reader.segment != listed:
            raise damaged(path, reader.segment.bytes, "its records are not those of the snapshot")
        self.torn_bytes += reader.torn_bytes

    def _reached(self) -> Position | None:
        return next((reader.segment.end for reader in reversed(self._readers) if reader.begin), None)

    def _require_follows(self, path: Path, before: Position, begin: Position | None) -> None:
        if begin != before:
            raise damaged(path, 0, f"it does not go on with record {before.serial}")


def segment_paths(folder: Path) -> list[Path]:
    """Return the segments of a folder, the oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def live_folder(folder: Path) -> Path:
    """Return where a shard's live log lies, also while it is being replaced."""
    live, new, gone = folder / LIVE, folder / NEW_LIVE, folder / GONE_LIVE
    if live.exists() or not gone.exists():
        return live
    return new if new.exists() else gone


def has_log(folder: Path) -> bool:
    """Say whether a shard's folder holds a live log."""
    return live_folder(folder).exists()


def settle_live(folder: Path) -> None:
    """Complete a change of a shard's live log that was interrupted between two renames, or undo it before."""
    live_now = live_folder(folder)
    if live_now.name != LIVE:
        live_now.rename(folder / LIVE)
    shutil.rmtree(folder / NEW_LIVE, ignore_errors=True)
    shutil.rmtree(folder / GONE_LIVE, ignore_errors=True)


def replace_live(folder: Path, parts: Sequence[tuple[Path, int]]) -> None:
    """Let the live log consist of these parts: whole segments are linked, of others the beginning is copied.

    It is built aside and swapped in, so that it is the old one or the new one whenever the process dies.
    """
    live, new, gone = folder / LIVE, folder / NEW_LIVE, folder / GONE_LIVE
    new.mkdir(parents=True)
    for path, size in parts:
        if path.stat().st_size == size:
            link_or_copy(path, new / path.name, size)
        else:
            copy_prefix(path, new / path.name, size)
    sync_folder(new)
    sync_folder(folder)
    reach("replay.before_live_rename")
    if live.exists():
        live.rename(gone)
    reach("replay.between_live_renames")
    new.rename(live)
    sync_folder(folder)
    reach("replay.after_live_rename")
    shutil.rmtree(gone, ignore_errors=True)


def link_or_copy(source: Path, target: Path, size: int, sync: Sync = os.fsync) -> None:
    """Let `target` begin with the first `size` bytes of a file: its very bytes, or a copy where links cannot be."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        copy_prefix(source, target, size, sync)


def copy_prefix(source: Path, target: Path, size: int, sync: Sync = os.fsync) -> None:
    """Copy the first `size` bytes of a file."""
    with source.open("rb") as old, target.open("wb") as new:
        done = 0
        while done < size:
            piece = old.read(min(1 << 20, size - done))
            if not piece:
                raise RunError(f"{source} must have {size} bytes, got {done}")
            done += new.write(piece)
        new.flush()
        sync(new.fileno())
