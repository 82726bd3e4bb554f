"""The recurrent states in which windows begin: fewer than steps, so they lie in a ring of their own."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from starling.spec import ArraySpec
from starling.types import Columns

SPARE = 8  # so that a few short episodes do not matter to a small shard
ROW_BYTES = 4  # where the state of a row lies
ENTRY_BYTES = 8  # whose state it is


def ring_size(rows: int, period: int) -> int:
    """Return how many states are kept: twice as many as long episodes need, since each episode begins with one."""
    return min(rows, 2 * rows // period + SPARE)


class Starts:
    """The newest states; the oldest ones make room. A row has one only if that is still its own."""

    def __init__(self, rows: int, period: int, specs: Mapping[str, ArraySpec]) -> None:
        self._size = ring_size(rows, period)
        self._columns = {name: spec.zeros(self._size) for name, spec in specs.items()}
        self._row = np.full(self._size, -1)
        self._place = np.zeros(rows, np.int32)  # by slot
        self._end = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._row.nbytes + self._place.nbytes + sum(column.nbytes for column in self._columns.values())

    def append(self, rows: NDArray[np.int64], slots: NDArray[np.int64], states: Columns) -> NDArray[np.int64]:
        """Keep the states of rows, and return the rows whose states made room."""
        rows, slots = rows[-self._size :], slots[-self._size :]
        places = np.arange(self._end, self._end + len(rows)) % self._size
        lost = self._row[places]
        self._row[places] = rows
        self._place[slots] = places
        for name, column in self._columns.items():
            column[places] = states[name][-self._size :]
        self._end += len(rows)
        return lost[lost >= 0]

    def has(self, rows: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say for rows whether their states are there."""
        own: NDArray[np.bool_] = self._row[self._place[slots]] == rows
        return own

    def gather(self, slots: NDArray[np.int64]) -> Columns:
        """Return the states of rows that have one."""
        places = self._place[slots]
        return {name: column.take(places, axis=0, mode="clip") for name, column in self._columns.items()}
