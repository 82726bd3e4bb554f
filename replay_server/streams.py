"""What a shard remembers of each actor, so that windows span its unrolls."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from starling.packed import PackedUnroll
from starling.types import Unroll

MAX_SILENT = 1024  # writers that are remembered although nothing of them is left


class Rows(NamedTuple):
    """Consecutive rows of an actor's copies: which rows of the storage, and what `starling.windows` asks of them."""

    numbers: NDArray[np.int64]  # [R, E]
    still_open: NDArray[np.bool_]  # [R, E] a real step whose window is not whole yet
    age: NDArray[np.integer] | None  # [R, E] where windows go by it

    def then(self, later: "Rows") -> "Rows":
        """Return these rows and those after them."""
        return Rows(
            np.concatenate([self.numbers, later.numbers]),
            np.concatenate([self.still_open, later.still_open]),
            None if self.age is None or later.age is None else np.concatenate([self.age, later.age]),
        )

    def tail(self, count: int) -> "Rows":
        """Return the last `count` rows, or what there is: copies, so that a silent stream holds no unroll's buffer."""
        age = None if self.age is None else self.age[-count:].copy()
        return Rows(self.numbers[-count:].copy(), self.still_open[-count:].copy(), age)


class Stream(NamedTuple):
    """The newest unroll of an actor that was accepted, and the rows in which windows may still be open."""

    generation: int
    sequence: int
    rows: Rows | None  # None: nothing of it is here

    @property
    def newest(self) -> int:
        """The newest row that windows may begin in, or -1."""
        return int(self.rows.numbers.max()) if self.rows is not None else -1

    @property
    def last(self) -> tuple[int, int]:
        """What counts its unrolls: only growing, while one actor writes after the other."""
        return self.generation, self.sequence

    def goes_on_with(self, unroll: Unroll | PackedUnroll) -> bool:
        """Say whether nothing is missing between the newest unroll and this one."""
        return (unroll.generation, unroll.sequence - 1) == self.last

    def fences_off(self, unroll: Unroll | PackedUnroll) -> bool:
        """Say whether the unroll was sent by a predecessor of the actor that writes now."""
        return unroll.generation < self.generation

    def has_seen(self, unroll: Unroll | PackedUnroll) -> bool:
        """Say whether the unroll, or a later one of the same writer, came before."""
        return unroll.generation == self.generation and unroll.sequence <= self.sequence


class Streams:
    """The streams of all actors; the one that wrote last comes last.

    Of silent ones the rows go when they are overwritten, and the longest silent are forgotten when they are many: so
    what is remembered is bounded, whoever comes and goes.
    """

    def __init__(self, capacity: int) -> None:
        self._streams: dict[int, Stream] = {}
        self._every = capacity // 4  # rows from one look at the silent ones to the next
        self._look_at = 0

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, actor: int) -> Stream | None:
        """Return the stream of an actor."""
        return self._streams.get(actor)

    def refusal(self, unroll: Unroll | PackedUnroll) -> str:
        """Say by the name of a counter why an unroll is not taken; empty: it is."""
        stream = self._streams.get(unroll.actor)
        if stream is None:
            return ""
        if stream.fences_off(unroll):
            return "unrolls_fenced_off"
        return "unrolls_repeated" if stream.has_seen(unroll) else ""

    def remember(self, unroll: PackedUnroll, rows: Rows, oldest: int) -> None:
        """Keep what later unrolls of this writer need, while the rows from `oldest` on are alive."""
        self._streams.pop(unroll.actor, None)
        self._streams[unroll.actor] = Stream(unroll.generation, unroll.sequence, rows)
        if len(self._streams) > MAX_SILENT:
            for actor in list(self._streams)[:-MAX_SILENT]:
                if self._streams[actor].newest < oldest:
                    del self._streams[actor]
        if oldest >= self._look_at:
            self._look_at = oldest + self._every
            for actor, stream in self._streams.items():
                if stream.newest < oldest:
                    self._streams[actor] = stream._replace(rows=None)

    def writers(self) -> list[list[int]]:
        """Return each actor's number and what it sent last."""
        return [[actor, *stream.last] for actor, stream in self._streams.items()]

    def adopt(self, writers: Iterable[Sequence[int]]) -> None:
        """Know of these writers too; whoever is known to have written since then did so later."""
        later, self._streams = self._streams, {}
        for actor, generation, sequence in writers:
            own = later.get(actor)
            if own is None or own.last < (generation, sequence):
                self._streams[actor] = Stream(generation, sequence, None)
            elif own.last == (generation, sequence):
                self._streams[actor] = own
            else:
                continue
            later.pop(actor, None)
        self._streams |= later

    def clear(self) -> None:
        """Forget everybody: whoever writes begins a new stream."""
        self._streams.clear()
