"""One shard of the replay service: takes unrolls, keeps their steps, and serves prioritized windows over them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_server.config import ReplayConfig
from replay_server.inspection import figures
from replay_server.priorities import LARGEST, largest, masses, usable
from replay_server.starts import Starts
from replay_server.storage import Make, Storage, columns_of, new_arrays, row_bytes
from replay_server.streams import Rows, Streams
from replay_server.sum_tree import SumTree
from starling.metrics import Clock, Meter
from starling.packed import PackedUnroll, pack
from starling.spec import ArraySpec, Spec
from starling.state import State, rng_meta, set_rng
from starling.types import Columns, InsertReply, SampleReply, SampleRequest, Unroll
from starling.windows import Window, begun

KEY_BITS = 40  # more rows than one shard will see


class ReplayShard:
    """Keeps the newest steps and serves windows over them, in proportion to (priority + eps) ** alpha. Never waits.

    Rows are numbered for ever, and a window's key is the number of its first row behind the shard's `origin`, which
    no other incarnation of the shard has: so a priority that arrives after its window was overwritten is recognised
    and dropped, and the learner may be late, never wrong. A window has mass only while all its rows are alive, the
    frames of its first stack and its recurrent state included. Nothing is refused for lack of credit: credit is
    advice, and writers wait. Called from one thread.
    """

    def __init__(
        self,
        config: ReplayConfig,
        spec: Spec,
        window: Window,
        extra_columns: Mapping[str, ArraySpec],
        rng: np.random.Generator,
        clock: Clock,
        origin: int = 0,
        starts: Mapping[str, ArraySpec] = MappingProxyType({}),
    ) -> None:
        columns = columns_of(spec, extra_columns)
        rows = config.shard_rows(row_bytes(columns, window, starts))
        self._config = config
        self._window = window
        self._rng = rng
        self._origin = origin
        self._storage = Storage(rows, columns, window)
        self._starts = Starts(rows, window.period, starts) if starts else None
        self._tree = SumTree(rows)
        self._times_sampled = self._storage.times_sampled
        self._streams = Streams(rows)
        self._size = 0  # windows alive
        self._inserted = 0  # windows ever
        self._insert_limit = -(-config.min_windows // config.shards)  # so that actors need not wait for the learner
        self._largest = 1.0
        self._learner = 0  # the newest generation of it that asked
        self._meter = Meter(clock)

    @property
    def rows(self) -> tuple[int, int]:
        """The oldest row that is alive, and the next one."""
        return self._storage.oldest, self._storage.end

    def insert(self, unroll: Unroll | PackedUnroll) -> InsertReply:
        """Store an unroll and the windows that it completes, unless it came before or its writer was replaced."""
        self._meter.enter("inserting")
        refusal = self._streams.refusal(unroll)
        if refusal:
            self._meter.count(refusal)
        else:
            windows = self._store(pack(unroll))
            self._inserted += windows
            self._meter.count("unrolls_inserted")
            self._meter.count("windows_inserted", windows)
            self._meter.count("env_steps", unroll.num_steps)
        self._meter.enter("idle")
        return InsertReply(credit=self.credit(), accepted=not refusal)

    def fill(self, unroll: Unroll | PackedUnroll) -> tuple[int, int]:
        """Store recorded data, which no account counts, and return its first row and how many rows there are."""
        first = self._storage.end
        self._store(pack(unroll))
        self._meter.count("unrolls_filled")
        return first, self._storage.end - first

    def refill(self, unroll: Unroll | PackedUnroll, first_row: int) -> None:
        """Store an unroll again under the rows that it had; rows left out are nobody's."""
        self._skip_to(first_row)
        assert first_row == self._storage.end, "unrolls come back in the order of their rows"
        self.fill(unroll)

    def credit(self) -> int:
        """Return how many windows this shard still takes; at 0 its writers wait."""
        return max(0, self._insert_limit - self._inserted)

    def sample(self, request: SampleRequest, make: Make = new_arrays) -> SampleReply:
        """Set the priorities that the request brings, then draw its windows; a learner that was replaced gets none.

        The windows are gathered into the arrays that `make` returns.
        """
        self._meter.enter("sampling")
        fenced_off = request.generation < self._learner
        if fenced_off:
            self._meter.count("requests_fenced_off")
        else:
            self._learner = request.generation
            self._insert_limit = request.insert_limit
            self._largest = max(self._largest, request.largest_priority)
            self._update_priorities(request.keys, request.priorities)
        counts = list(request.counts) if self._size and not fenced_off else [0] * len(request.counts)
        total = self._tree.total
        slots = self._tree.find(self._drawn(counts) * total)
        np.add.at(self._times_sampled, slots, np.uint32(1))  # a Python number would take the slow way
        reply = SampleReply(
            counts=counts,
            windows=self._storage.gather(slots, make),
            keys=self._storage.rows_in(slots) + (self._origin << KEY_BITS),
            probabilities=self._tree.get(slots) / total,
            mass=total,
            size=self._size,
            inserted=self._inserted,
            origin=self._origin,
            starts=self._starts.gather(slots) if self._starts else {},
        )
        self._meter.count("windows_sampled", len(slots))
        self._meter.enter("idle")
        return reply

    def index(self) -> State:
        """Return all that is not in the unrolls themselves: their windows' masses, the account, and who wrote."""
        oldest, end = self.rows
        slots = self._storage.slots(np.arange(oldest, end))
        arrays: Columns = {"masses": self._tree.get(slots), "times_sampled": self._times_sampled[slots]}
        meta = {
            "first": oldest,
            "end": end,
            "capacity": self._storage.capacity,
            "inserted": self._inserted,
            "insert_limit": self._insert_limit,
            "largest": self._largest,
            "rng": rng_meta(self._rng),
            "origin": self._origin,
            "writers": self._streams.writers(),
        }
        return State(arrays, meta)

    def adopt(self, index: State, account: bool, writers: bool) -> None:
        """Lay an index over the unrolls that were stored again; windows that it does not know stay as they are.

        With its `account` the shard goes on with the same numbers, the random ones included. With its `writers` it
        knows what they had sent.
        """
        first, end = index.meta["first"], index.meta["end"]
        known = np.arange(max(first, self._storage.oldest), min(end, self._storage.end))
        self.set_masses(known, index.arrays["masses"][known - first])
        self._times_sampled[self._storage.slots(known)] = index.arrays["times_sampled"][known - first]
        self._skip_to(end)
        if account:
            self._inserted, self._insert_limit = index.meta["inserted"], index.meta["insert_limit"]
            self._largest = index.meta["largest"]
            set_rng(self._rng, index.meta["rng"])
        if writers:
            self._streams.adopt(index.meta["writers"])

    def forget_writers(self) -> None:
        """Let whoever writes from now on begin a new stream, also under a number that came before."""
        self._streams.clear()

    def set_masses(self, rows: NDArray[np.int64], masses: NDArray[np.float64]) -> None:
        """Set the masses of windows by their first rows; rows that begin no window here stay without."""
        slots = self._storage.slots(rows)
        there = (rows >= self._storage.oldest) & (rows < self._storage.end) & (masses > 0.0)
        there &= self._tree.get(slots) > 0.0
        self._tree.set(slots[there], masses[there])

    def stats(self) -> dict[str, Any]:
        """Return what this shard has done and holds."""
        oldest, end = self.rows
        gauges = {
            "windows": self._size,
            "mass": self._tree.total,
            "credit": self.credit(),
            "rows": end - oldest,
            "capacity": self._storage.capacity,
            "bytes": self._bytes(end - oldest),
            "writers": len(self._streams),
        }
        more, histograms = figures(self._tree.leaves, self._storage.at, self._times_sampled)
        for name, value in {**gauges, **more}.items():
            self._meter.gauge(name, value)
        stats = self._meter.snapshot()
        stats["histograms"] |= histograms
        return stats

    def _store(self, unroll: PackedUnroll) -> int:
        """Store an unroll, and return how many windows it made whole."""
        storage, window = self._storage, self._window
        self._make_room(storage.end + len(unroll.rows))
        carried = self._carried(unroll)
        rows = Rows(storage.append(unroll), unroll.column("acted"), unroll.column("age") if window.by_age else None)
        if self._starts is not None and unroll.start_at.size:
            self._keep_states(self._starts, unroll, rows)
        before = 0
        if carried is not None:
            goes_on = carried.still_open[-1].nonzero()[0]
            storage.link(carried.numbers[-1].take(goes_on), rows.numbers[0].take(goes_on))
            before, rows = len(carried.numbers), carried.then(rows)
        ends = np.zeros(rows.numbers.shape, np.bool_)  # of episodes; one before these rows left no window open
        ends.reshape(-1)[unroll.final_at + before * rows.numbers.shape[1]] = True
        begins, left = begun(window, rows.still_open, ends, rows.age)
        first, priorities = self._alive(unroll, rows, begins.reshape(-1).nonzero()[0])
        self._tree.set(storage.slots(first), self._masses_of_new(priorities))
        self._size += len(first)
        rest = rows._replace(still_open=left).tail(window.length + window.stack - 1)
        self._streams.remember(unroll, rest, storage.oldest)
        return len(first)

    def _skip_to(self, row: int) -> None:
        """Go on with this row, if it is not reached yet."""
        if row > self._storage.end:
            self._make_room(row)
            self._storage.skip_to(row)

    def _make_room(self, end: int) -> None:
        """Take the windows that cannot be drawn any more when the rows up to `end` are there."""
        storage = self._storage
        if self._window.stack > 1:
            self._take(storage.slots(storage.orphans(end)))
        for there, _ in storage.spans(max(storage.end, end - storage.capacity), end):
            self._size -= self._tree.clear(there.start, there.stop)

    def _keep_states(self, starts: Starts, unroll: PackedUnroll, rows: Rows) -> None:
        """Store the recurrent states of an unroll, and take the windows of those that made room."""
        numbers = rows.numbers.reshape(-1)[unroll.start_at]
        lost = starts.append(numbers, self._storage.slots(numbers), unroll.starts)
        self._take(self._storage.slots(lost[lost >= self._storage.oldest]))

    def _take(self, slots: NDArray[np.int64]) -> None:
        self._size -= int(np.count_nonzero(self._tree.get(slots)))
        self._tree.set(slots, 0.0)

    def _carried(self, unroll: PackedUnroll) -> Rows | None:
        stream = self._streams.get(unroll.actor)
        if stream is None:
            return None
        if stream.goes_on_with(unroll):
            return stream.rows
        self._meter.count("streams_cut")  # its open windows would span what is missing
        return None

    def _alive(
        self, unroll: PackedUnroll, rows: Rows, at: NDArray[np.intp]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the first rows of the windows that begin there, and their priorities, NaN where nobody knows."""
        first = rows.numbers.take(at)
        if self._window.stack > 1 or self._starts is not None or rows.numbers.item(0) < self._storage.oldest:
            there = self._are_there(rows, at, first)
            if not there.all():
                self._meter.count("windows_lost", int(np.count_nonzero(~there)))
                at, first = at[there], first[there]
        return first, _given_priorities(unroll, at, len(rows.numbers))

    def _are_there(self, rows: Rows, at: NDArray[np.intp], first: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say of windows whether all that they are served with is alive."""
        earliest = first if self._window.stack == 1 else self._earliest(rows, at)
        there = earliest >= self._storage.oldest
        if self._starts is not None:
            there &= self._starts.has(first, self._storage.slots(first))
        return there

    def _earliest(self, rows: Rows, at: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return of windows, by where they begin in `rows`, the first row that they need; -1 if it is none of these."""
        assert rows.age is not None, "stacks go by age"
        behind = np.minimum(rows.age.take(at), self._window.stack - 1)
        earliest = at - behind * rows.age.shape[1]
        return np.where(earliest >= 0, rows.numbers.take(np.maximum(earliest, 0)), -1)

    def _drawn(self, counts: Sequence[int]) -> NDArray[np.float64]:
        """Draw as many numbers in [0, 1) for each batch, in order within it."""
        numbers = self._rng.random(sum(counts))
        begin = 0
        for count in counts:
            numbers[begin : begin + count].sort()
            begin += count
        return numbers

    def _masses_of_new(self, priorities: NDArray[np.float64]) -> NDArray[np.float64]:
        low = np.minimum.reduce(priorities, initial=0.0)  # NaN if one of them is
        high = np.maximum.reduce(priorities, initial=self._largest)
        if low >= 0.0 and high <= LARGEST:
            self._largest = float(high)
            return self._masses(priorities)
        known = usable(priorities)
        self._meter.count("priorities_refused", int(np.count_nonzero(~known & ~np.isnan(priorities))))
        self._largest = largest(priorities, self._largest)
        return self._masses(np.where(known, priorities, self._largest))

    def _update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.float64]) -> None:
        rows = keys - (self._origin << KEY_BITS)  # of another origin: below the oldest one, or beyond the end
        slots = self._storage.slots(rows)
        alive = (rows >= self._storage.oldest) & (rows < self._storage.end) & (self._tree.get(slots) > 0.0)
        fit = usable(priorities)
        both = alive & fit
        if np.count_nonzero(both) < len(both):
            self._meter.count("priorities_late", int(np.count_nonzero(~alive)))
            self._meter.count("priorities_refused", int(np.count_nonzero(~fit)))
            slots, priorities = slots[both], priorities[both]
        self._tree.set(slots, self._masses(priorities))

    def _masses(self, priorities: NDArray[np.float64]) -> NDArray[np.float64]:
        return masses(priorities, self._config.alpha, self._config.eps)

    def _bytes(self, rows: int) -> int:
        """Return how much memory the rows take that are there; what was never written takes none."""
        arrays = self._storage.nbytes + self._tree.nbytes
        arrays += self._starts.nbytes if self._starts is not None else 0
        return arrays * rows // self._storage.capacity


def _given_priorities(unroll: PackedUnroll, at: NDArray[np.intp], num_rows: int) -> NDArray[np.float64]:
    """Return what the actor says of windows by where they begin in so many rows, NaN where it says nothing.

    Aligned from the end: after a cut the actor still counts in rows that are carried no more.
    """
    known = unroll.priorities
    if known is None:
        return np.full(len(at), np.nan)
    if len(known) == num_rows:
        return known.take(at, mode="clip").astype(np.float64)
    at = at + (len(known) - num_rows) * known.shape[1]
    return np.where(at >= 0, known.take(at, mode="clip"), np.nan).astype(np.float64)
