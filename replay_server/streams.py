"""What a shard remembers of each actor, so that windows span its unrolls."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from starling.types import Unroll


class Rows(NamedTuple):
    """Consecutive rows of an actor's copies: which rows of the storage, and what `starling.windows` asks of them."""

    numbers: NDArray[np.int64]  # [R, E]
    acted: NDArray[np.bool_]  # [R, E]
    ended: NDArray[np.bool_]  # [R, E]
    age: NDArray[np.integer]  # [R, E]

    @staticmethod
    def of(unroll: Unroll, numbers: NDArray[np.int64]) -> "Rows":
        """Return the rows of an unroll, stored under these numbers."""
        columns = unroll.columns
        ended = columns["acted"] & (columns["terminated"] | columns["truncated"])
        assert len(unroll.final_at) == np.count_nonzero(ended), "each ended step needs its final observation"
        return Rows(numbers, columns["acted"], ended, columns["age"])

    def then(self, later: "Rows") -> "Rows":
        """Return these rows and those after them."""
        return Rows(
            np.concatenate([self.numbers, later.numbers]),
            np.concatenate([self.acted, later.acted]),
            np.concatenate([self.ended, later.ended]),
            np.concatenate([self.age, later.age]),
        )

    def tail(self, count: int) -> "Rows":
        """Return the last `count` rows, or what there is."""
        return self.since(max(0, len(self.numbers) - count))

    def since(self, row: int) -> "Rows":
        """Return the rows from this one on."""
        return Rows(self.numbers[row:], self.acted[row:], self.ended[row:], self.age[row:])

    def copy(self) -> "Rows":
        """Return the same in arrays of their own, so that a silent stream holds no buffer of its last unroll."""
        return Rows(self.numbers.copy(), self.acted.copy(), self.ended.copy(), self.age.copy())


class Stream(NamedTuple):
    """The newest unroll of an actor that was accepted, and the rows in which windows may still be open."""

    generation: int
    sequence: int
    rows: Rows | None  # None: nothing of it is here

    @property
    def newest(self) -> int:
        """The newest row that windows may begin in, or -1."""
        return int(self.rows.numbers.max()) if self.rows is not None else -1

    def goes_on_with(self, unroll: Unroll) -> bool:
        """Say whether nothing is missing between the newest unroll and this one."""
        return (unroll.generation, unroll.sequence) == (self.generation, self.sequence + 1)

    def fences_off(self, unroll: Unroll) -> bool:
        """Say whether the unroll was sent by a predecessor of the actor that writes now."""
        return unroll.generation < self.generation

    def has_seen(self, unroll: Unroll) -> bool:
        """Say whether the unroll, or a later one of the same writer, came before."""
        return unroll.generation == self.generation and unroll.sequence <= self.sequence
