"""One shard of the replay service: takes unrolls, keeps their steps, and serves prioritized windows over them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_server.config import ReplayConfig
from replay_server.priorities import largest, masses, usable
from replay_server.storage import Storage, columns_of, row_bytes
from replay_server.streams import Rows, Stream
from replay_server.sum_tree import SumTree
from starling.metrics import Clock, Meter
from starling.spec import ArraySpec, Spec
from starling.state import State, rng_meta, set_rng
from starling.types import InsertReply, SampleReply, SampleRequest, Unroll
from starling.windows import Window, completed


class ReplayShard:
    """Keeps the newest steps and serves windows over them, in proportion to (priority + eps) ** alpha. Never waits.

    Keys count rows and are never reused, so a priority that arrives after its window was overwritten is
    recognised and dropped: the learner may be late, never wrong. A window has mass only while its first row is
    alive, and the storage lets first rows go first. Nothing is refused for lack of credit: credit is advice, and
    writers wait. A shard that takes a dead one's place begins at a `first_key` that no key of it can have reached, so
    priorities for the dead one's windows are dropped too. Called from one thread.
    """

    def __init__(
        self,
        config: ReplayConfig,
        spec: Spec,
        window: Window,
        extra_columns: Mapping[str, ArraySpec],
        rng: np.random.Generator,
        clock: Clock,
        first_key: int = 0,
    ) -> None:
        columns = columns_of(spec, extra_columns)
        rows = config.shard_rows(row_bytes(columns))
        self._config = config
        self._window = window
        self._rng = rng
        self._storage = Storage(rows, columns, first_key)
        self._tree = SumTree(rows)
        self._streams: dict[int, Stream] = {}
        self._size = 0  # windows alive
        self._inserted = 0  # windows ever
        self._insert_limit = -(-config.min_windows // config.shards)  # so that actors need not wait for the learner
        self._largest = 1.0
        self._learner = 0  # the newest generation of it that asked
        self._meter = Meter(clock)

    def insert(self, unroll: Unroll) -> InsertReply:
        """Store an unroll and the windows that it completes, unless it came before or its writer was replaced."""
        self._meter.enter("inserting")
        refusal = self._refusal(unroll)
        if refusal:
            self._meter.count(refusal)
        else:
            self._insert(unroll)
        self._meter.enter("idle")
        return InsertReply(credit=self.credit(), accepted=not refusal)

    def credit(self) -> int:
        """Return how many windows this shard still takes; at 0 its writers wait."""
        return max(0, self._insert_limit - self._inserted)

    def sample(self, request: SampleRequest) -> SampleReply:
        """Set the priorities that the request brings, then draw its windows; a learner that was replaced gets none."""
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
        slots = self._tree.find(self._rng.random(sum(counts)) * total)
        reply = SampleReply(
            counts=counts,
            columns=self._storage.gather(slots, self._window),
            keys=self._storage.keys(slots),
            probabilities=self._tree.get(slots) / total,
            mass=total,
            size=self._size,
            inserted=self._inserted,
            origin=self._storage.first_key,
        )
        self._meter.count("windows_sampled", len(slots))
        self._meter.enter("idle")
        return reply

    @property
    def rows(self) -> tuple[int, int]:
        """The oldest row that is alive, and the next one."""
        return self._storage.oldest, self._storage.end

    def fill(self, unroll: Unroll) -> tuple[int, int]:
        """Store an unroll without account or refusal; returns its first row and how many there are."""
        first = self._storage.end
        inserted, self._inserted = self._inserted, 0
        self._insert(unroll)
        self._inserted = inserted
        return first, self._storage.end - first

    def refill(self, unroll: Unroll, first_row: int) -> None:
        """Do the same under given row numbers; those in between are nobody's."""
        assert first_row >= self._storage.end, "rows are numbered as they come"
        skipped = self._storage.slots(np.arange(max(self._storage.end, first_row - self._storage.capacity), first_row))
        self._tree.set(skipped, np.zeros(len(skipped)))
        self._storage.end = first_row
        self.fill(unroll)

    def index(self) -> State:
        """Return what a log of unrolls does not say: the masses, the account, and who wrote."""
        first, end = self.rows
        meta = {
            "first": first,
            "end": end,
            "inserted": self._inserted,
            "insert_limit": self._insert_limit,
            "largest": self._largest,
            "rng": rng_meta(self._rng),
            "origin": 0,
            "writers": [[actor, stream.generation, stream.sequence] for actor, stream in self._streams.items()],
        }
        return State({"masses": self._tree.get(self._storage.slots(np.arange(first, end)))}, meta)

    def adopt(self, index: State, account: bool, writers: bool) -> None:
        """Lay an index over the rows that it knows."""
        self.set_masses(np.arange(index.meta["first"], index.meta["end"]), index.arrays["masses"])
        if account:
            self._inserted, self._insert_limit = index.meta["inserted"], index.meta["insert_limit"]
            self._largest = index.meta["largest"]
            set_rng(self._rng, index.meta["rng"])
        if not writers:
            self._streams = {}

    def set_masses(self, rows: NDArray[np.int64], masses: NDArray[np.float64]) -> None:
        """Set the masses of rows that are alive."""
        alive = (rows >= self._storage.oldest) & (rows < self._storage.end)
        self._tree.set(self._storage.slots(rows[alive]), masses[alive])
        everywhere = self._tree.get(np.arange(self._storage.capacity))
        self._size = int(np.count_nonzero(everywhere))

    def state(self) -> State:
        """Return every window that can be drawn, and the account.

        No stream: whoever writes after a restart begins new ones, so windows that are not whole never will be.
        """
        alive = self._storage.slots(np.arange(self._storage.oldest, self._storage.end))
        meta = {
            "size": self._size,
            "inserted": self._inserted,
            "insert_limit": self._insert_limit,
            "largest": self._largest,
            "rng": rng_meta(self._rng),
        }
        return State({"masses": self._tree.get(alive)}, meta).and_(self._storage.state().within("storage"))

    def restore(self, state: State) -> None:
        """Hold what another shard of the same settings held."""
        self._storage.restore(state.under("storage"))
        alive = self._storage.slots(np.arange(self._storage.oldest, self._storage.end))
        masses = np.zeros(self._storage.capacity)
        masses[alive] = state.arrays["masses"]
        self._tree.set(np.arange(self._storage.capacity), masses)
        self._streams = {}
        self._size, self._inserted = state.meta["size"], state.meta["inserted"]
        self._insert_limit, self._largest = state.meta["insert_limit"], state.meta["largest"]
        set_rng(self._rng, state.meta["rng"])

    def stats(self) -> dict[str, Any]:
        """Return what this shard has done and holds."""
        for name, value in (("windows", self._size), ("mass", self._tree.total), ("credit", self.credit())):
            self._meter.gauge(name, value)
        self._meter.gauge("rows", self._storage.end - self._storage.oldest)
        self._meter.gauge("capacity", self._storage.capacity)
        return self._meter.snapshot()

    def _refusal(self, unroll: Unroll) -> str:
        stream = self._streams.get(unroll.actor)
        if stream is None:
            return ""
        if stream.fences_off(unroll):
            return "unrolls_fenced_off"
        return "unrolls_repeated" if stream.has_seen(unroll) else ""

    def _insert(self, unroll: Unroll) -> None:
        carried = self._carried(unroll)
        first = self._storage.end
        rows = Rows.of(unroll, self._storage.append(unroll))
        num_carried = 0
        if carried is not None:
            num_carried = len(carried.keys)
            goes_on = carried.acted[-1] & ~carried.ended[-1]
            self._storage.link(carried.keys[-1, goes_on], rows.keys[0, goes_on])
            rows = carried.then(rows)
        windows = completed(self._window, rows.acted, rows.ended, rows.age, num_carried)
        priorities = self._given_priorities(unroll, len(rows.keys))[windows.row, windows.copy]
        self._add_windows(first, rows.keys[windows.row, windows.copy], priorities)
        self._streams[unroll.actor] = Stream(unroll.generation, unroll.sequence, rows.tail(self._window.length))
        self._meter.count("unrolls_inserted")
        self._meter.count("env_steps", unroll.num_steps)

    def _carried(self, unroll: Unroll) -> Rows | None:
        stream = self._streams.get(unroll.actor)
        if stream is None:
            return None
        if stream.goes_on_with(unroll):
            return stream.rows
        self._meter.count("streams_cut")  # its open windows would span what is missing
        return None

    def _given_priorities(self, unroll: Unroll, num_rows: int) -> NDArray[np.float64]:
        """Align from the end: after a cut the actor still counts in rows that are carried no more."""
        priorities = np.full((num_rows, unroll.columns["acted"].shape[1]), np.nan)
        if unroll.priorities is not None:
            known = unroll.priorities[-num_rows:]
            priorities[num_rows - len(known) :] = known
        return priorities

    def _add_windows(self, first: int, starts: NDArray[np.int64], priorities: NDArray[np.float64]) -> None:
        """Give windows their mass, and take it from the windows whose first row was overwritten."""
        known = usable(priorities)
        self._meter.count("priorities_refused", int(np.count_nonzero(~known & ~np.isnan(priorities))))
        self._largest = largest(priorities, self._largest)
        alive = starts >= self._storage.oldest
        fresh = self._masses(np.where(known, priorities, self._largest)[alive])
        written = self._storage.slots(np.arange(first, self._storage.end))
        self._size += len(fresh) - int(np.count_nonzero(self._tree.get(written)))
        leaves = np.concatenate([written, self._storage.slots(starts[alive])])  # of a leaf given twice the last counts
        self._tree.set(leaves, np.concatenate([np.zeros(len(written)), fresh]))
        self._inserted += len(starts)
        self._meter.count("windows_inserted", len(starts))

    def _update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.float64]) -> None:
        slots = self._storage.slots(keys)
        alive = (keys >= self._storage.oldest) & (keys < self._storage.end) & (self._tree.get(slots) > 0.0)
        fit = usable(priorities)
        self._meter.count("priorities_late", int(np.count_nonzero(~alive)))
        self._meter.count("priorities_refused", int(np.count_nonzero(~fit)))
        fit &= alive
        self._tree.set(slots[fit], self._masses(priorities[fit]))

    def _masses(self, priorities: NDArray[np.float64]) -> NDArray[np.float64]:
        return masses(priorities, self._config.alpha, self._config.eps)
