"""An unroll as it travels, is logged and is stored: its rows as a shard keeps them, each with its small columns."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starling.spec import ArraySpec
from starling.types import Array, Columns, Unroll

SMALL = 64  # bytes: a cache line
NEXT, DRAWN = "->", "#"  # no columns' names
ALONE = ("acted", "age")  # how the steps of an unroll hang together, which nobody stores
COLUMN, EPISODE, START = "column/", "episode/", "start/"


class PackedUnroll(NamedTuple):
    """An unroll as the arrays that it travels as; `pack` makes it, and `unpack` says what it was.

    `rows` are records `[N + F]`: the N real steps in the order of time, and the F observations after an episode's last
    step. Each says under `NEXT` which of these rows holds the next observation, or its own number if none does. The
    other columns stay `[T, E, ...]`: those of `ALONE`, and those too large for a record.
    """

    actor: int
    generation: int
    sequence: int
    arrays: Columns

    @property
    def rows(self) -> NDArray[np.void]:
        """Steps and last observations."""
        return self.arrays["rows"]

    @property
    def num_steps(self) -> int:
        """Real steps."""
        return len(self.arrays["rows"]) - len(self.arrays["final_at"])

    @property
    def final_at(self) -> NDArray[np.int64]:
        """As in an Unroll."""
        return self.arrays["final_at"]

    @property
    def priorities(self) -> NDArray[np.float32] | None:
        """As in an Unroll."""
        return self.arrays.get("priorities")

    @property
    def start_at(self) -> NDArray[np.int64]:
        """As in an Unroll."""
        return self.arrays.get("start_at", np.empty(0, np.int64))

    @property
    def starts(self) -> Columns:
        """As in an Unroll."""
        return under(START, self.arrays)

    def column(self, name: str) -> Array:
        """Return a column that is not in the rows, `[T, E, ...]`."""
        return self.arrays[COLUMN + name]


def row_dtype(columns: Mapping[str, ArraySpec]) -> np.dtype[Any]:
    """Return the record of a row: the row of its next observation, its draws, and its small columns.

    What windows have of each step comes last, so that it is a record too.
    """
    small = {name: spec for name, spec in columns.items() if spec.nbytes <= SMALL and name not in ALONE}
    first = {"obs": small.pop("obs")} if "obs" in small else {}
    first |= {NEXT: ArraySpec((), "int32"), DRAWN: ArraySpec((), "uint32")}
    widest_first = sorted(small.items(), key=lambda item: (-np.dtype(item[1].dtype).itemsize, item[0]))
    fields = [*first.items(), *widest_first]
    return np.dtype([(name, spec.dtype, spec.shape) for name, spec in fields], align=True)


def step_dtype(row: np.dtype[Any]) -> np.dtype[Any]:
    """Return the record of a window's step: what ends a row's, beginning with the widest column."""
    names = [name for name in names_in(row) if name != "obs"]
    return np.dtype([(name, row[name].base, row[name].shape) for name in names], align=True)


def names_in(rows: np.dtype[Any]) -> list[str]:
    """Return which columns lie in a record."""
    return [name for name in rows.names or () if name not in (NEXT, DRAWN)]


def pack(unroll: Unroll | PackedUnroll) -> PackedUnroll:
    """Return the unroll as arrays; those of its large columns are its own."""
    if isinstance(unroll, PackedUnroll):
        return unroll
    assert unroll.next_obs is None, "what is learned from whole needs all that its rows hold"
    columns, final_at = unroll.columns, unroll.final_at
    dtype = _row_dtype(tuple((name, column.dtype.str, column.shape[2:]) for name, column in columns.items()))
    names = names_in(dtype)
    acted, steps = columns["acted"], unroll.num_steps
    which = None if steps == acted.size else np.flatnonzero(acted)
    rows = np.zeros(steps + len(final_at), dtype)  # zeros, also in the padding
    for name in names:
        rows[name][:steps] = flat(columns[name], which)
    rows[NEXT] = _next_rows(acted, which, final_at)
    arrays = {"rows": rows, "final_at": final_at}
    if "obs" in names:
        rows["obs"][steps:] = unroll.final_obs
    else:
        arrays["final_obs"] = unroll.final_obs
    arrays |= {COLUMN + name: column for name, column in columns.items() if name not in names}
    arrays |= {EPISODE + name: figure for name, figure in unroll.episodes.items()}
    if unroll.priorities is not None:
        arrays["priorities"] = unroll.priorities
    if unroll.starts:
        arrays |= {"start_at": unroll.start_at, **{START + name: state for name, state in unroll.starts.items()}}
    return PackedUnroll(unroll.actor, unroll.generation, unroll.sequence, arrays)


def unpack(packed: PackedUnroll) -> Unroll:
    """Return the unroll, with zeros in place of the rows that were no steps; the rest are views where they can be."""
    arrays, rows = packed.arrays, packed.rows
    columns = under(COLUMN, arrays)
    acted, steps = columns["acted"], packed.num_steps
    for name in names_in(rows.dtype):
        column = rows[name][:steps]
        if steps < acted.size:
            whole = np.zeros((*acted.shape, *column.shape[1:]), column.dtype)
            whole[acted] = column
            whole.flags.writeable = False
            columns[name] = whole
        else:
            columns[name] = column.reshape(*acted.shape, *column.shape[1:])
    return Unroll(
        actor=packed.actor,
        generation=packed.generation,
        sequence=packed.sequence,
        columns=columns,
        final_at=packed.final_at,
        final_obs=arrays["final_obs"] if "final_obs" in arrays else rows["obs"][steps:],
        priorities=packed.priorities,
        episodes=under(EPISODE, arrays),
        start_at=packed.start_at,
        starts=packed.starts,
    )


def flat(column: Array, which: NDArray[np.intp] | None) -> Array:
    """Return a column's rows behind one another, or only some of them."""
    rows = column.reshape(-1, *column.shape[2:])
    return rows if which is None else rows.take(which, axis=0)


def under(prefix: str, arrays: Columns) -> Columns:
    """Return the arrays whose names begin so, by what follows."""
    return {rest: arrays[name] for name, rest in _names_under(prefix, tuple(arrays))}


def _next_rows(
    acted: NDArray[np.bool_], which: NDArray[np.intp] | None, final_at: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return of each row of an unroll which one holds the next observation."""
    number = acted.cumsum().reshape(acted.shape)
    number -= 1
    steps = int(number[-1, -1]) + 1
    following = np.arange(steps + len(final_at))  # what has nothing behind it leads to itself
    before_last = flat(number[1:], None if which is None else which[: np.count_nonzero(acted[:-1])])
    following[: len(before_last)] = before_last
    following[number.reshape(-1)[final_at]] = np.arange(steps, len(following))
    return following


@lru_cache(64)
def _row_dtype(columns: tuple[tuple[str, str, tuple[int, ...]], ...]) -> np.dtype[Any]:
    return row_dtype({name: ArraySpec(shape, dtype) for name, dtype, shape in columns})


@lru_cache(64)  # messages of one kind have the same names
def _names_under(prefix: str, names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, name.removeprefix(prefix)) for name in names if name.startswith(prefix)]
