"""A shard whose contents outlive it: what it stores also goes into its log."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_server.journal import Journal
from replay_server.shard import ReplayShard
from replay_server.storage import Make, new_arrays
from starling.codec import Octets
from starling.metrics import Clock, Meter
from starling.packed import PackedUnroll
from starling.state import State
from starling.types import InsertReply, SampleReply, SampleRequest, Unroll
from starling.wire import encode_unroll

ITS_DISK = "its disk"


class DurableShard:
    """A ReplayShard to the outside. Stores an unroll in memory, then in the log, and answers then.

    So whatever was acknowledged is in the log as far as the journal promises, and nothing is in the log twice: what
    the shard refuses does not get there. Without a journal nothing outlives the shard. Called from one thread.
    """

    def __init__(self, shard: ReplayShard, journal: Journal | None, clock: Clock) -> None:
        self._shard = shard
        self._journal = journal
        self._meter = Meter(clock)
        self._origins: dict[str, State] = {}  # of the newest snapshot without a journal
        assert journal is None or journal.end_row <= shard.rows[1], "the log knows rows that the shard does not"

    @property
    def rows(self) -> tuple[int, int]:
        """The oldest row that is alive, and the next one."""
        return self._shard.rows

    def insert(self, unroll: Unroll | PackedUnroll, packed: Octets | None = None) -> InsertReply:
        """Store an unroll; `packed` is the same as it came, and must not change afterwards."""
        first = self._shard.rows[1]
        reply = self._shard.insert(unroll)
        if reply.accepted:
            self._log(unroll, packed, first, accounted=True)
        if self._waits_for_its_disk():
            return replace(reply, credit=0, waits=ITS_DISK)
        return reply

    def fill(self, unroll: Unroll | PackedUnroll, packed: Octets | None = None) -> tuple[int, int]:
        """Store an unroll of which the account is to know nothing; returns its first row and how many there are."""
        first, rows = self._shard.fill(unroll)
        self._log(unroll, packed, first, accounted=False)
        return first, rows

    def sample(self, request: SampleRequest, make: Make = new_arrays) -> SampleReply:
        """Serve windows."""
        return self._shard.sample(request, make)

    def credit(self) -> int:
        """Return how many windows this shard still takes; at 0 its writers wait."""
        return 0 if self._waits_for_its_disk() else self._shard.credit()

    def must_wait(self) -> str:
        """Say for what writers wait, if not for the samples-per-insert account."""
        return ITS_DISK if self._waits_for_its_disk() else ""

    def set_masses(self, rows: NDArray[np.int64], masses: NDArray[np.float64]) -> None:
        """Set the masses of rows that are alive."""
        self._shard.set_masses(rows, masses)

    def index(self) -> State:
        """Return what the log does not say."""
        return self._shard.index()

    def snapshot(self, name: str) -> None:
        """Begin a snapshot of this moment; inserts go on meanwhile."""
        index = self._shard.index()
        if self._journal:
            self._journal.snapshot(name, index)
        else:
            self._origins = {name: State(meta={"origin": index.meta["origin"]})}

    def taken(self, name: str) -> State | None:
        """Return what a checkpoint must know of a snapshot, or None while it is written; RunError if it failed."""
        if self._journal is None:
            return self._origins[name]
        outcome = self._journal.taken(name)
        return None if outcome is None else State(meta=outcome)

    def drop(self, name: str) -> None:
        """Remove a snapshot that no checkpoint will name."""
        if self._journal:
            self._journal.drop(name)

    def stats(self) -> dict[str, Any]:
        """Return what the shard has done and holds; `notes` are sentences for a person, each about new trouble."""
        stats = self._shard.stats()
        if self._journal is None:
            return stats
        segments = self._journal.segments
        stats["gauges"] |= {"segments": float(len(segments)), "log_bytes": float(sum(s.bytes for s in segments))}
        stats["counts"]["unrolls_not_kept"] = self._journal.not_kept
        stats["notes"] = list(self._journal.notes)
        journaling = self._meter.snapshot()["time_s"].get("journaling", 0.0)
        stats["time_s"]["journaling"] = journaling
        stats["time_s"]["idle"] = max(0.0, stats["time_s"].get("idle", 0.0) - journaling)  # as the shard saw it
        return stats

    def close(self) -> None:
        """Write what waits, and let go of the log."""
        if self._journal:
            self._journal.close()

    def _log(self, unroll: Unroll | PackedUnroll, packed: Octets | None, first: int, accounted: bool) -> None:
        if self._journal is None:
            return
        self._meter.enter("journaling")
        oldest, end = self._shard.rows
        buffer = encode_unroll(unroll) if packed is None else packed
        self._journal.append(first, end - first, buffer, accounted)
        self._journal.retire(oldest)
        self._meter.enter("idle")

    def _waits_for_its_disk(self) -> bool:
        return self._journal is not None and self._journal.full
