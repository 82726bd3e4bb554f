"""What makes a shard's contents outlive it: every unroll in its log, before or behind the acknowledgement."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from replay_server.config import ReplayConfig
from replay_server.log import SEGMENT_BYTES, LiveLog
from replay_server.segments import Segment, Sync, Write
from replay_server.snapshots import facts, remove_snapshot, write_snapshot
from starling.codec import Octets
from starling.errors import RunError
from starling.failpoints import reach
from starling.metrics import Clock
from starling.state import State

BACKLOG_BYTES = 32 << 20  # that wait for the disk in memory
MAX_UNSYNCED = 8  # files that are open because nobody forced them to the disk yet
NOTES = 8  # that are remembered


class Journal:
    """Appends what a shard stored, and takes snapshots; nothing that the disk does reaches the shard as an error.

    With durability "journal" an unroll is written when `append` returns, so it survives the process; at the latest
    `fsync_every_s` later, at 0 when `append` returns, it survives the machine's power too. With "snapshot" it is
    written behind the shard's back. `background` is whether there is a thread to do so: it also forces to the disk,
    takes the snapshots and removes files; without it all of that happens inline, and at the same points in each run.
    What cannot be written is counted in `not_kept`, and `notes` says so once each time that trouble begins.
    All methods are called from one thread.
    """

    def __init__(
        self,
        folder: Path,
        config: ReplayConfig,
        clock: Clock,
        background: bool,
        segment_bytes: int = SEGMENT_BYTES,
        write: Write = os.writev,
        sync: Sync = os.fsync,
    ) -> None:
        self.not_kept = 0
        self.notes: list[str] = []
        self._folder = folder
        self._clock = clock
        self._sync = sync
        self._log = LiveLog(folder, segment_bytes, write, sync)
        self._before_the_answer = config.durability == "journal"
        self._sync_every_s = config.fsync_every_s
        self._forces_in_time = background and self._before_the_answer and config.fsync_every_s > 0.0  # by itself
        self._synced_at = clock()
        self._handed_bytes = self._done_bytes = 0  # the difference waits; each is written by one thread
        self._in_trouble = False
        self._taken: dict[str, dict[str, Any] | RunError | None] = {}
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="journal", daemon=True) if background else None
        if self._thread:
            self._thread.start()

    @property
    def full(self) -> bool:
        """Whether as much waits for the disk as may."""
        return self._handed_bytes - self._done_bytes >= BACKLOG_BYTES

    @property
    def segments(self) -> list[Segment]:
        """The live segments."""
        return self._log.segments

    @property
    def end_row(self) -> int:
        """The row behind the last one that was appended."""
        return self._log.end_row

    def append(self, first_row: int, rows: int, packed: Octets, accounted: bool = True) -> None:
        """Take over an unroll that the shard has stored; `packed` must not change afterwards."""
        if not self._before_the_answer:
            self._handed_bytes += len(packed)
            self._later(partial(self._append, first_row, rows, accounted, packed))
            return
        self._append(first_row, rows, accounted, packed)
        if not self._forces_in_time and self._is_time_to_sync():
            self._force()

    def retire(self, oldest_row: int) -> None:
        """Remove the segments of which no row is alive."""
        if self._before_the_answer:
            if gone := self._log.retire(oldest_row):
                self._later(partial(self._remove, gone))  # behind the snapshots that still link them
        else:
            self._later(lambda: self._remove(self._log.retire(oldest_row)))  # behind what was appended before

    def snapshot(self, name: str, index: State) -> None:
        """Begin a snapshot of all that was appended until now, and forget how earlier ones went; inserts go on."""
        self._taken[name] = None
        segments = self._log.segments if self._before_the_answer else None
        self._later(lambda: self._take(name, index, self._log.segments if segments is None else segments))

    def taken(self, name: str) -> dict[str, Any] | None:
        """Return what must be known to restore a snapshot, or None while it is being taken; RunError if it failed."""
        outcome = self._taken[name]
        if isinstance(outcome, RunError):
            raise outcome
        return outcome

    def drop(self, name: str) -> None:
        """Remove a snapshot, as soon as it is taken, that no checkpoint will name."""
        self._later(partial(self._drop, name))

    def close(self) -> None:
        """Write what waits, force it to the disk, and end the thread."""
        if self._thread:
            self._jobs.put(None)
            self._thread.join()
        self._force()
        self._log.close()

    def _append(self, first_row: int, rows: int, accounted: bool, packed: Octets) -> None:
        try:
            self._log.append(first_row, rows, accounted, packed)
            self._in_trouble = False
        except OSError as error:
            self.not_kept += 1
            self._note(f"cannot be written ({error.strerror}): what is inserted is kept in memory alone until it can")
        if not self._before_the_answer:
            self._done_bytes += len(packed)
        if not self._forces_in_time and self._log.unsynced_files > MAX_UNSYNCED:
            self._force()

    def _force(self) -> None:
        self._synced_at = self._clock()
        try:
            self._log.sync()
        except OSError as error:
            self._note(f"cannot be forced to the disk ({error.strerror}): the machine's power is needed to keep it")

    def _take(self, name: str, index: State, segments: list[Segment]) -> None:
        for done in [old for old, outcome in list(self._taken.items()) if outcome is not None]:
            del self._taken[done]  # here: what was to be dropped of them is
        try:
            self._log.sync()
            place, sha256 = write_snapshot(self._folder, name, index, segments, self._sync)
        except (OSError, RunError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self._taken[name] = RunError(f"snapshot {name} of {self._folder} was not taken: {why}")
            return
        records = sum(segment.records for segment in segments)
        self._taken[name] = {**facts(index), "snapshot": place, "sha256": sha256, "records": records}

    def _drop(self, name: str) -> None:
        outcome = self._taken.get(name)
        if not isinstance(outcome, dict):
            return
        try:
            remove_snapshot(self._folder, outcome["snapshot"])
        except OSError as error:
            self._note(f"has an old snapshot that cannot be removed ({error.strerror})")

    def _remove(self, segments: list[Path]) -> None:
        if not segments:
            return
        reach("replay.before_retire")
        try:
            for path in segments:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._note(f"has old segments that cannot be removed ({error.strerror})")

    def _note(self, what: str) -> None:
        if not self._in_trouble:
            self.notes = [*self.notes[1 - NOTES :], f"the log of {self._folder} {what}"]
        self._in_trouble = True

    def _later(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            job()
            return
        assert self._thread.is_alive(), "the journal's thread ended; its error is in the log"
        self._jobs.put(job)

    def _work(self) -> None:
        """Do the jobs in turn, and force to the disk in time."""
        wait_s = self._sync_every_s if self._forces_in_time else None
        while True:
            try:
                job = self._jobs.get(timeout=wait_s)
                if job is None:
                    return
                job()
            except Empty:
                self._force()
            if wait_s is not None and self._is_time_to_sync():
                self._force()

    def _is_time_to_sync(self) -> bool:
        return self._clock() - self._synced_at >= self._sync_every_s
