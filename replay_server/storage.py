"""The ring in which a shard keeps steps: every observation once, in preallocated columns."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_server import starts
from starling.errors import check
from starling.spec import ArraySpec, Spec
from starling.types import Array, Columns, Unroll
from starling.windows import Window

SMALL = 64  # bytes: a cache line
NEXT, DRAWN = "->", "#"  # no columns' names
LINK_BYTES = 4
SHARE_BYTES = 16  # a row's share of the sum tree
MAX_ROWS = 2**31 - 1  # links are int32

Make = Callable[[Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]], Columns]
"""Returns arrays of these shapes and types, for somebody else to fill"""


def new_arrays(entries: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> Columns:
    """Return arrays in memory of their own."""
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in entries.items()}


def columns_of(spec: Spec, extra: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Return what is stored of each step, by name."""
    return {
        "obs": spec.obs,
        "action": spec.action,
        "reward": ArraySpec((), "float32"),
        "terminated": ArraySpec((), "bool"),
        "truncated": ArraySpec((), "bool"),
        "version": ArraySpec((), "int64"),
        **extra,
    }


def row_bytes(
    columns: Mapping[str, ArraySpec], window: Window | None = None, states: Mapping[str, ArraySpec] | None = None
) -> int:
    """Return what one row costs, everything included, also its share of the recurrent states."""
    window, states = window or Window(), states or {}
    near = side_by_side(columns, window)
    own = near.itemsize + sum(columns[name].nbytes for name in columns.keys() - set(near.names or ()))
    own += LINK_BYTES * int(window.stack > 1) + int(window.burn_in > 0) + SHARE_BYTES
    if states:
        entry = sum(state.nbytes for state in states.values()) + starts.ENTRY_BYTES
        own += starts.ROW_BYTES + -(-entry * min(2, window.period) // window.period)
    return own


def side_by_side(columns: Mapping[str, ArraySpec], window: Window) -> np.dtype[Any]:
    """Return the record of a row's small columns, of the slot of its next observation, and of its draws.

    Frames that are stacked are gathered from other rows than these.
    """
    small = {name: spec for name, spec in columns.items() if spec.nbytes <= SMALL}
    if window.stack > 1:
        small.pop("obs", None)
    small |= {NEXT: ArraySpec((), "int32"), DRAWN: ArraySpec((), "uint32")}
    widest_first = sorted(small.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize)
    return np.dtype([(name, spec.dtype, spec.shape) for name, spec in widest_first], align=True)


class Storage:
    """The newest `capacity` rows; the oldest ones make room.

    A row is a step, or the observation after an episode's last step. Rows are numbered as they come and a number
    is never used again: row r lies in slot `r % capacity`, and it is alive until the row that is `capacity` younger
    is written. Each row knows the slot of the row with the next observation, which is always younger than itself:
    so while a window's first row is alive, all of them are. For frame stacks each row knows the one before it too.
    Small columns lie side by side, so that a row somewhere costs one miss of the cache and not one for each of them.

    The last row of an episode and the newest one of a stream have nothing behind them and link to themselves. As
    the former holds zeros but for its observation, a window that stays there reads as padding.
    """

    def __init__(self, capacity: int, columns: Mapping[str, ArraySpec], window: Window) -> None:
        check(capacity <= MAX_ROWS, f"replay.capacity must be <= {MAX_ROWS} steps in each shard, got {capacity}")
        self.capacity = capacity
        self.end = 0  # the next row
        self._begin = 0  # the first row that ever was
        self._window = window
        self._near = np.zeros(capacity, side_by_side(columns, window))  # untouched pages cost nothing
        self._near_octets = self._near.view(f"V{self._near.itemsize}")  # taken several times faster than records
        self._small = [name for name in self._near.dtype.names or () if name not in (NEXT, DRAWN)]
        self._far = {name: spec.zeros(capacity) for name, spec in columns.items() if name not in self._small}
        self._columns = {name: self._near[name] for name in self._small} | self._far
        self._next = self._near[NEXT]
        self.times_sampled = self._near[DRAWN]  # by slot; whoever draws counts
        self._previous = np.zeros(capacity if window.stack > 1 else 0, np.int32)
        self._opens = np.zeros(capacity if window.burn_in else 0, bool)  # the row begins an episode

    @property
    def oldest(self) -> int:
        """The smallest row that is alive."""
        return max(self._begin, self.end - self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        columns = sum(column.nbytes for column in self._far.values())
        return columns + self._near.nbytes + self._previous.nbytes + self._opens.nbytes

    def slots(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where rows lie."""
        return rows % self.capacity

    def rows_in(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which rows lie in slots that have been written."""
        newest = self.end - 1
        return newest - (newest - slots) % self.capacity

    def at(self, name: str, slots: NDArray[np.int64] | slice) -> Array:
        """Return one column's values."""
        values: Array = self._columns[name][slots]
        return values

    def skip_to(self, row: int) -> None:
        """Go on with this row; those between are nobody's, and lead nowhere."""
        assert row >= self.end, "rows only grow"
        if self.end == self._begin:
            self._begin = row
        skipped = self.slots(np.arange(max(self.end, row - self.capacity), row))
        self._next[skipped] = skipped
        self.end = row

    def orphans(self, end: int) -> NDArray[np.int64]:
        """Return the rows that will live on without all frames of their stacks when the rows up to `end` are there."""
        if self._window.stack == 1:
            return np.empty(0, np.int64)
        oldest = end - self.capacity
        slots = self.slots(np.arange(self.oldest, min(oldest, self.end)))
        reached = []
        for _ in range(self._window.stack - 1):
            slots = self._next[slots].astype(np.int64)
            reached.append(self.rows_in(slots))
        rows = np.unique(np.concatenate(reached))
        return rows[rows >= oldest]

    def append(self, unroll: Unroll) -> NDArray[np.int64]:
        """Write the real steps of an unroll in the order of time, then its final observations.

        Returns the row of each step, `[T, E]`; those of autoreset rows mean nothing.
        """
        acted, steps, first = unroll.columns["acted"], unroll.num_steps, self.end
        which = None if steps == acted.size else np.flatnonzero(acted)
        last = first + steps
        end = last + len(unroll.final_at)
        self._refuse_more_than_fits(end - first)
        self.end = end
        rows = (np.arange(first, last) if which is None else np.cumsum(acted) + (first - 1)).reshape(acted.shape)
        steps_in = self._spans(first, last)
        for name, column in self._columns.items():
            _write(column, steps_in, _flat(unroll.columns[name], which))
        for there, here in self._spans(last, end):
            for column in (self._near_octets, *self._far.values()):
                column[there] = np.zeros((), column.dtype)
            self._columns["obs"][there] = unroll.final_obs[here]
        following = np.arange(first, end)  # what has nothing behind it leads to itself
        before_last = _flat(rows[1:], None if which is None else which[: np.count_nonzero(acted[:-1])])
        following[: len(before_last)] = before_last
        following[rows.reshape(-1)[unroll.final_at] - first] = np.arange(last, end)
        _write(self._next, self._spans(first, end), self.slots(following))
        self._append_ages(unroll, rows, which)
        return rows

    def link(self, rows: NDArray[np.int64], following: NDArray[np.int64]) -> None:
        """Say for rows, dead ones among them, which rows hold their next observation."""
        alive = rows >= self.oldest
        slots, following = self.slots(rows[alive]), self.slots(following[alive])
        self._next[slots] = following
        if self._window.stack > 1:
            self._previous[following] = slots

    def gather(self, slots: NDArray[np.int64], make: Make = new_arrays) -> Columns:
        """Return the windows that begin at these slots, time-major `[L, n, ...]`, behind their end padded with zeros.

        `obs` is `[L + 1, n, ...]` or, of the window's ends only, `[2, n, ...]`; behind the end it repeats the
        observation after the last step. With stacks it holds frames, as the window says.
        """
        chain, near = self._chain(slots)
        steps, frames = chain[:-1], self._frames(chain)
        places = {name: frames if name == "obs" else steps for name in self._columns}
        entries = {name: (places[name].shape + c.shape[1:], c.dtype) for name, c in self._columns.items()}
        flags = ("valid", "learn") if self._window.burn_in else ("valid",)
        arrays = make(entries | {name: (steps.shape, np.dtype(bool)) for name in flags})
        for name in self._small:
            if name != "obs":
                arrays[name][...] = near[name][:-1]
            else:
                arrays[name][...] = near[name] if self._window.every_obs else near[name][:: self._window.length]
        for name, column in self._far.items():
            # the default mode is half as fast with frames, and copies what goes to `out` twice
            column.take(places[name], axis=0, mode="clip", out=arrays[name])
        np.not_equal(chain[1:], steps, out=arrays["valid"])
        if self._window.burn_in:
            warm = np.arange(self._window.length)[:, None] >= self._window.burn_in
            np.logical_and(arrays["valid"], self._opens[slots] | warm, out=arrays["learn"])
        return arrays

    def _chain(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.void]]:
        """Return slots and records of the windows' steps, and of the rows with their last observations, `[L + 1, n]`.

        A record says where the next one is, so that a row costs one miss of the cache.
        """
        chain = np.empty((self._window.length + 1, len(slots)), np.intp)
        octets = np.empty(chain.shape, self._near_octets.dtype)
        near = octets.view(self._near.dtype)
        links = near[NEXT]
        chain[0] = slots
        for step in range(self._window.length):
            self._near_octets.take(chain[step], mode="clip", out=octets[step])
            chain[step + 1] = links[step]
        self._near_octets.take(chain[-1], mode="clip", out=octets[-1])
        return chain, near

    def _frames(self, chain: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the slots of the observations that a window is served with."""
        window = self._window
        if window.stack == 1:
            return chain if window.every_obs else chain[:: window.length]
        first = self._stack(chain[0])
        if window.every_obs or window.length == 1:
            return np.concatenate([first[:-1], chain])
        return np.concatenate([first, self._stack(chain[-1])])

    def _stack(self, slots: NDArray[np.intp]) -> NDArray[np.intp]:
        stack = np.empty((self._window.stack, len(slots)), np.intp)
        stack[-1] = slots
        for before in range(self._window.stack - 1, 0, -1):
            stack[before - 1] = self._previous[stack[before]]
        return stack

    def _append_ages(self, unroll: Unroll, rows: NDArray[np.int64], which: NDArray[np.intp] | None) -> None:
        """Note what lies before the rows of an unroll in their episodes."""
        if self._window.burn_in:
            self._opens[self.slots(_flat(rows, which))] = _flat(unroll.columns["age"], which) == 0
        if self._window.stack > 1:
            before = rows.copy()
            np.copyto(before[1:], rows[:-1], where=unroll.columns["age"][1:] > 0)
            self._previous[self.slots(_flat(rows, which))] = self.slots(_flat(before, which))
            finals = np.arange(self.end - len(unroll.final_at), self.end)
            self._previous[self.slots(finals)] = self.slots(rows.reshape(-1)[unroll.final_at])

    def _spans(self, first: int, end: int) -> list[tuple[slice, slice]]:
        """Return where consecutive rows lie, and which of them lie there: one piece, or two at the ring's seam."""
        start, count = first % self.capacity, end - first
        fit = min(count, self.capacity - start)
        head = (slice(start, start + fit), slice(0, fit))
        return [head] if fit == count else [head, (slice(0, count - fit), slice(fit, count))]

    def _refuse_more_than_fits(self, rows: int) -> None:
        check(
            rows <= self.capacity,
            f"replay.capacity must be >= {rows} steps in each shard (one unroll of its actors), got {self.capacity}",
        )


def _write(column: Array, spans: list[tuple[slice, slice]], rows: Array) -> None:
    for there, here in spans:
        column[there] = rows[here]


def _flat(column: Array, which: NDArray[np.intp] | None) -> Array:
    flat = column.reshape(-1, *column.shape[2:])
    return flat if which is None else flat.take(which, axis=0)
