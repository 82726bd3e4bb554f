"""The ring in which a shard keeps steps: every observation once, in preallocated columns."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from starling.errors import check
from starling.spec import ArraySpec, Spec
from starling.state import State, require_same
from starling.types import Array, Columns, Unroll
from starling.windows import Window

OVERHEAD_BYTES = 4 + 16  # the link to the next row, and the row's share of the sum tree
MAX_ROWS = 2**31 - 1  # links are int32


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


def row_bytes(columns: Mapping[str, ArraySpec]) -> int:
    """Return what one row costs, everything included."""
    return sum(column.nbytes for column in columns.values()) + OVERHEAD_BYTES


class Storage:
    """The newest `capacity` rows; the oldest ones make room.

    A row is a step, or the observation after an episode's last step. Rows are numbered as they come and a number
    is never used again: that is a row's key, it lies in slot `key % capacity`, and it is alive until the row
    that is `capacity` younger is written. Each row knows the slot of the row with the next observation, which is
    always younger than itself: so while a window's first row is alive, all of them are.

    The last row of an episode and the newest one of a stream have nothing behind them and link to themselves. As
    the former holds zeros but for its observation, a window that stays there reads as padding.
    """

    def __init__(self, capacity: int, columns: Mapping[str, ArraySpec], first_key: int = 0) -> None:
        check(capacity <= MAX_ROWS, f"replay.capacity must be <= {MAX_ROWS} steps in each shard, got {capacity}")
        self.capacity = capacity
        self.end = first_key  # the key of the next row
        self.first_key = first_key
        self._columns = {name: spec.zeros(capacity) for name, spec in columns.items()}  # untouched pages cost nothing
        self._next = np.zeros(capacity, np.int32)

    @property
    def oldest(self) -> int:
        """The smallest key that is alive."""
        return max(self.first_key, self.end - self.capacity)

    def slots(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where rows lie."""
        return keys % self.capacity

    def keys(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which rows lie in slots that have been written."""
        newest = self.end - 1
        return newest - (newest - slots) % self.capacity

    def append(self, unroll: Unroll) -> NDArray[np.int64]:
        """Write the real steps of an unroll in the order of time, then its final observations.

        Returns the key of each step, `[T, E]`; those of autoreset rows mean nothing.
        """
        acted = unroll.columns["acted"]
        steps, finals = int(np.count_nonzero(acted)), len(unroll.final_at)
        self._refuse_more_than_fits(steps + finals)
        which = None if steps == acted.size else np.flatnonzero(acted)
        first, last = self.end, self.end + steps
        for name, column in self._columns.items():
            self._write(column, first, _rows(unroll.columns[name], which))
            final = unroll.final_obs if name == "obs" else np.zeros((finals, *column.shape[1:]), column.dtype)
            self._write(column, last, final)
        keys = (first + np.cumsum(acted) - 1).reshape(acted.shape)
        following = np.concatenate([keys[1:], keys[-1:]])
        final_keys = last + np.arange(finals)
        following.reshape(-1)[unroll.final_at] = final_keys
        self._write(self._next, first, _rows(self.slots(following), which))
        self._write(self._next, last, self.slots(final_keys))
        self.end = last + finals
        return keys

    def link(self, keys: NDArray[np.int64], following: NDArray[np.int64]) -> None:
        """Say for rows, dead ones among them, which rows hold their next observation."""
        alive = keys >= self.oldest
        self._next[self.slots(keys[alive])] = self.slots(following[alive])

    def gather(self, slots: NDArray[np.int64], window: Window) -> Columns:
        """Return the windows that begin at these slots, time-major `[L, n, ...]`, behind their end padded with zeros.

        `obs` is `[L + 1, n, ...]` or, of the window's ends only, `[2, n, ...]`; behind the end it repeats the
        observation after the last step.
        """
        rows = np.empty((window.length + 1, len(slots)), np.int64)
        rows[0] = slots
        for step in range(window.length):
            rows[step + 1] = self._next.take(rows[step])
        steps = rows[:-1]
        columns = {name: _take(column, steps) for name, column in self._columns.items() if name != "obs"}
        columns["obs"] = _take(self._columns["obs"], rows if window.every_obs else rows[[0, -1]])
        columns["valid"] = rows[1:] != steps
        return columns

    def state(self) -> State:
        """Return the rows that are alive, the oldest first."""
        slots = self.slots(np.arange(self.oldest, self.end))
        arrays = {name: column[slots] for name, column in self._columns.items()}
        meta = {"capacity": self.capacity, "first_key": self.first_key, "end": self.end}
        return State({"next": self._next[slots]}, meta).and_(State(arrays).within("columns"))

    def restore(self, state: State) -> None:
        """Hold the rows of another storage of the same size, under their keys."""
        columns = state.under("columns").arrays
        require_same("rows of a shard", state.meta["capacity"], self.capacity)
        require_same("stored columns", _kinds(columns), _kinds(self._columns))
        self.first_key, self.end = state.meta["first_key"], state.meta["end"]
        slots = self.slots(np.arange(self.oldest, self.end))
        for name, column in self._columns.items():
            column[slots] = columns[name]
        self._next[slots] = state.arrays["next"]

    def _write(self, column: Array, first: int, rows: Array) -> None:
        start = first % self.capacity
        fit = min(len(rows), self.capacity - start)
        column[start : start + fit] = rows[:fit]
        column[: len(rows) - fit] = rows[fit:]

    def _refuse_more_than_fits(self, rows: int) -> None:
        check(
            rows <= self.capacity,
            f"replay.capacity must be >= {rows} steps in each shard (one unroll of its actors), got {self.capacity}",
        )


def _kinds(columns: Columns) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (column.dtype.str, column.shape[1:]) for name, column in sorted(columns.items())}


def _rows(column: Array, which: NDArray[np.intp] | None) -> Array:
    flat = column.reshape(-1, *column.shape[2:])
    return flat if which is None else flat.take(which, axis=0)


def _take(column: Array, slots: NDArray[np.int64]) -> Array:
    return column.take(slots, axis=0, mode="clip")  # the default mode is half as fast with frames
