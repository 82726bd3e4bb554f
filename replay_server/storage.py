"""The ring in which a shard keeps steps: every observation once, in preallocated columns."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_server import starts
from starling.errors import check
from starling.packed import ALONE, DRAWN, NEXT, PackedUnroll, flat, names_in, pack, row_dtype, step_dtype, unpack
from starling.spec import ArraySpec, Spec
from starling.types import STEPS, Array, Columns
from starling.windows import Window

LINK_BYTES = 4
SHARE_BYTES = 10  # a row's share of the sum tree
MAX_ROWS = 2**30  # links are int32, and go beyond the ring's seam before they are brought back

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
    near = row_dtype(columns)
    own = near.itemsize + sum(columns[name].nbytes for name in columns.keys() - set(near.names or ()))
    own += LINK_BYTES * int(window.stack > 1) + int(window.burn_in > 0) + SHARE_BYTES
    if states:
        entry = sum(state.nbytes for state in states.values()) + starts.ENTRY_BYTES
        own += starts.ROW_BYTES + -(-entry * min(2, window.period) // window.period)
    return own


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
        self._near = np.zeros(capacity, row_dtype(columns))  # untouched pages cost nothing
        self._near_octets = _octets(self._near)
        small = names_in(self._near.dtype)
        self._far = {name: spec.zeros(capacity) for name, spec in columns.items() if name not in small}
        self._columns = {name: self._near[name] for name in small} | self._far
        self._step = step_dtype(self._near.dtype)
        self._parts = _parts(self._near.dtype, self._step)
        self._apart = {name: c for name, c in self._columns.items() if name not in (self._step.names or ())}
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
        self.times_sampled[skipped] = 0
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

    def append(self, unroll: PackedUnroll) -> NDArray[np.int64]:
        """Write an unroll's rows; returns the row of each step, `[T, E]`; those of autoreset rows mean nothing."""
        unroll = self._as_kept(unroll)
        rows, first = unroll.rows, self.end
        ended = rows["terminated"] | rows["truncated"]
        assert np.count_nonzero(ended) == len(unroll.final_at), "each ended step needs its final observation"
        end = first + len(rows)
        self._refuse_more_than_fits(len(rows))
        self.end = end
        spans = self.spans(first, end)
        _write(self._near_octets, spans, _octets(rows))
        for there, _ in spans:
            links = self._next[there]
            links += np.int32(first % self.capacity)  # rows of the unroll become slots
            if len(spans) > 1:
                links[links >= self.capacity] -= self.capacity
        acted = unroll.column("acted")
        real = np.count_nonzero(acted)
        assert real == unroll.num_steps, "each real step needs its row"
        numbers = np.arange(first, first + real) if real == acted.size else acted.cumsum() + (first - 1)
        if self._far:
            self._append_far(unroll, first)
        if self._window.burn_in or self._window.stack > 1:
            self._append_ages(unroll, numbers, first)
        return numbers.reshape(acted.shape)

    def link(self, rows: NDArray[np.int64], following: NDArray[np.int64]) -> None:
        """Say for rows in ascending order, dead ones among them, which rows hold their next observation."""
        if rows.size and rows.item(0) < self.oldest:
            alive = rows >= self.oldest
            rows, following = rows[alive], following[alive]
        slots, following = self.slots(rows), self.slots(following)
        self._next[slots] = following
        if self._window.stack > 1:
            self._previous[following] = slots

    def gather(self, slots: NDArray[np.int64], make: Make = new_arrays) -> Columns:
        """Return the windows that begin at these slots, time-major `[L, n, ...]`, behind their end padded with zeros.

        The small columns are records under `STEPS`. `obs` is `[L + 1, n, ...]` or, of the window's ends only,
        `[2, n, ...]`; behind the end it repeats the observation after the last step. With stacks it holds frames, as
        the window says.
        """
        window = self._window
        chain, octets = self._chain(slots)
        steps, frames = chain[:-1], self._frames(chain)
        places = {name: frames if name == "obs" else steps for name in self._apart}
        entries = {name: (places[name].shape + c.shape[1:], c.dtype) for name, c in self._apart.items()}
        flags = ("valid", "learn") if window.burn_in else ("valid",)
        entries |= {name: (steps.shape, np.dtype(bool)) for name in flags}
        arrays = make({STEPS: (steps.shape, self._step), **entries})
        parts = octets.view(self._parts)
        _octets(arrays[STEPS])[...] = parts[STEPS][:-1]
        for name, column in self._far.items():
            # the default mode is half as fast with frames, and copies what goes to `out` twice
            column.take(places[name], axis=0, mode="clip", out=arrays[name])
        if "obs" not in self._far and window.stack > 1:
            arrays["obs"][...] = self._columns["obs"][frames]  # `take` would copy a column that lies in records
        elif "obs" not in self._far:
            obs = parts["obs"] if window.every_obs else parts["obs"][:: window.length]
            arrays["obs"].reshape(-1).view(obs.dtype).reshape(obs.shape)[...] = obs
        np.not_equal(chain[1:], steps, out=arrays["valid"])
        if window.burn_in:
            warm = np.arange(window.length)[:, None] >= window.burn_in
            np.logical_and(arrays["valid"], self._opens[slots] | warm, out=arrays["learn"])
        return arrays

    def _chain(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.intp], Array]:
        """Return slots and records of the windows' steps, and of the rows with their last observations, `[L + 1, n]`.

        A record says where the next one is, so that a row costs one miss of the cache.
        """
        chain = np.empty((self._window.length + 1, len(slots)), np.intp)
        octets = np.empty(chain.shape, self._near_octets.dtype)
        links = octets.view(self._near.dtype)[NEXT]
        chain[0] = slots
        for step in range(self._window.length):
            self._near_octets.take(chain[step], mode="clip", out=octets[step])
            chain[step + 1] = links[step]
        self._near_octets.take(chain[-1], mode="clip", out=octets[-1])
        return chain, octets

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

    def _as_kept(self, unroll: PackedUnroll) -> PackedUnroll:
        """Return an unroll in the very columns of the ring: its own may be others, or in other types.

        A wider type may make a column too large for a row, so it is packed anew.
        """
        if unroll.rows.dtype == self._near.dtype:
            return unroll
        whole = unpack(unroll)
        columns = {name: whole.columns[name].astype(kept.dtype, copy=False) for name, kept in self._columns.items()}
        columns |= {name: whole.columns[name] for name in ALONE}
        final_obs = whole.final_obs.astype(self._columns["obs"].dtype, copy=False)
        again = pack(replace(whole, columns=columns, final_obs=final_obs))
        assert again.rows.dtype == self._near.dtype, "steps must have the shapes that the shard keeps"
        return again

    def _append_far(self, unroll: PackedUnroll, first: int) -> None:
        acted, last = unroll.column("acted"), first + unroll.num_steps
        which = None if unroll.num_steps == acted.size else np.flatnonzero(acted)
        for name, column in self._far.items():
            _write(column, self.spans(first, last), flat(unroll.column(name), which))
            for there, here in self.spans(last, self.end):
                column[there] = unroll.arrays["final_obs"][here] if name == "obs" else 0

    def _append_ages(self, unroll: PackedUnroll, numbers: NDArray[np.int64], first: int) -> None:
        """Note what lies before the rows of an unroll in their episodes."""
        acted, age = unroll.column("acted"), unroll.column("age")
        which = np.flatnonzero(acted)
        slots = self.slots(np.arange(first, first + unroll.num_steps))
        if self._window.burn_in:
            self._opens[slots] = flat(age, which) == 0
        if self._window.stack > 1:
            rows = numbers.reshape(acted.shape)
            before = rows.copy()
            np.copyto(before[1:], rows[:-1], where=age[1:] > 0)
            self._previous[slots] = self.slots(flat(before, which))
            finals = np.arange(first + unroll.num_steps, self.end)
            self._previous[self.slots(finals)] = self.slots(numbers[unroll.final_at])

    def spans(self, first: int, end: int) -> list[tuple[slice, slice]]:
        """Return where consecutive rows lie, and which of them lie there: one piece, or two at the ring's seam."""
        start, count = first % self.capacity, end - first
        fit = min(count, self.capacity - start)
        head = (slice(start, start + fit), slice(0, fit))
        return [head] if fit == count else [head, (slice(0, count - fit), slice(fit, count))]

    def _refuse_more_than_fits(self, rows: int) -> None:
        if rows > self.capacity:  # asked first: to write the sentence takes longer
            rule = f"must be >= {rows} steps in each shard (one unroll of its actors)"
            check(False, f"replay.capacity {rule}, got {self.capacity}")


def _write(column: Array, spans: list[tuple[slice, slice]], rows: Array) -> None:
    for there, here in spans:
        column[there] = rows[here]


def _parts(row: np.dtype[Any], step: np.dtype[Any]) -> np.dtype[Any]:
    """Return what numpy copies of a row in one piece each: what windows have of every step, and the observation."""
    fields: Mapping[str, Any] = row.fields or {}
    places = {STEPS: (step.itemsize, fields[(step.names or ("",))[0]][1])}
    if "obs" in fields:
        places["obs"] = (row["obs"].itemsize, fields["obs"][1])
    formats, offsets = [f"V{size}" for size, _ in places.values()], [offset for _, offset in places.values()]
    return np.dtype({"names": list(places), "formats": formats, "offsets": offsets, "itemsize": row.itemsize})


def _octets(records: NDArray[np.void]) -> Array:
    """Return the same memory as what numpy copies and takes several times faster than records."""
    return records.view(f"V{records.itemsize}")
