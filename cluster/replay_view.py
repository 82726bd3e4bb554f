"""What the shards of a run hold, read from its folder: rows, windows and their priorities, without the observations."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from actors.envs import measure_spec
from cluster.config import ReplayRun
from cluster.png import Pixels, picture
from cluster.roles import build_algorithm
from cluster.snapshots import disk_bytes
from replay_server.contents import ShardContents, shard_folders
from replay_server.segments import Record
from replay_server.shard import ReplayShard
from replay_server.storage import columns_of, row_bytes
from starling import wire
from starling.errors import DataError
from starling.metrics import no_clock
from starling.recorded import recorded_from, without_oldest
from starling.spec import ArraySpec, Spec
from starling.types import Array, Unroll
from starling.windows import Window

Order = Literal["newest", "highest", "oldest"]
ROW = ArraySpec((), "int64")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWindow:
    """One window: its steps, and what the shard makes of it."""

    row: int
    actor: int
    copy: int
    age: int  # steps of the episode before it
    version: int  # that acted first; 0: recorded
    priority: float
    sampled: int | None  # times; None: it is younger than the newest checkpoint
    actions: list[Any]
    rewards: list[float]
    ended: Literal["", "terminated", "truncated"]
    obs: list[int]  # rows that hold its observations


@dataclass(frozen=True, slots=True)
class Layout:
    """What a run's shards store, and how much of it."""

    config: ReplayRun[Any]
    spec: Spec

    @staticmethod
    def of(config: ReplayRun[Any]) -> "Layout":
        """Return the layout of a run with these settings, whose environment must be there."""
        return Layout(config, measure_spec(config.env))

    @property
    def columns(self) -> dict[str, ArraySpec]:
        """What is stored of each step."""
        return columns_of(self.spec, build_algorithm(self.config).columns(self.spec))

    @property
    def window(self) -> Window:
        """What is sampled."""
        window = build_algorithm(self.config).window
        assert window is not None, "a replay serves windows"
        return window

    @property
    def row_bytes(self) -> int:
        """What a row costs in memory."""
        return row_bytes(self.columns, self.window)

    @property
    def capacity(self) -> int:
        """Rows of each shard."""
        return self.config.replay.shard_rows(self.row_bytes)


def shards_in(folder: Path) -> dict[int, ShardContents]:
    """Return the shards that wrote down what they hold, by number; none, if the run keeps nothing on the disk."""
    return {int(path.name.removeprefix("shard-")): ShardContents(path) for path in shard_folders(folder)}


class Held:
    """One shard's rows that are alive, as of the log; its windows by the shard's own rules, observations left out.

    Priorities and draws are those of the newest snapshot, and of what is younger those that its actors gave.
    """

    def __init__(self, shard: ShardContents, layout: Layout) -> None:
        self.layout = layout
        self.capacity = layout.capacity
        self.segments = shard.segments
        self.disk_bytes = disk_bytes(shard.folder)
        self.snapshot = shard.snapshot
        self._alpha, self._eps = layout.config.replay.alpha, layout.config.replay.eps
        lean = _lean_shard(layout)
        sent = []
        for record, unroll in alive(shard, layout.capacity):
            rows = _with_rows_for_obs(unroll, record.first_row)
            lean.refill(rows, record.first_row)
            sent.append((record, rows))
        if shard.index:
            lean.adopt(shard.index, account=False, writers=False)
        self.oldest, self.end = lean.rows
        self._masses = lean.index().arrays["masses"]
        self._sampled = _of_rows(shard.index, "times_sampled", self.oldest, self.end)
        self.steps = recorded_from(_without_dead(record, rows, self.oldest) for record, rows in sent) if sent else None

    @property
    def rows(self) -> NDArray[np.int64]:
        """The first row of every window, ascending."""
        return self.oldest + np.flatnonzero(self._masses)

    @property
    def priorities(self) -> NDArray[np.float64]:
        """The priority of every window."""
        masses = self._masses[self._masses > 0.0]
        return masses ** (1.0 / self._alpha) - self._eps if self._alpha else np.ones(len(masses))

    @property
    def times_sampled(self) -> NDArray[np.int64]:
        """How often each window that the newest snapshot knows was drawn."""
        times = self._sampled[self._masses > 0.0]
        return times[times >= 0]

    def column(self, name: str) -> Array:
        """Return a column of the steps that are alive."""
        return self.steps.columns[name] if self.steps else np.empty(0)

    def windows(self, order: Order, count: int) -> Iterator[HeldWindow]:
        """Yield the first windows in an order."""
        rows, priorities = self.rows, self.priorities
        ranks = {"newest": -rows, "oldest": rows, "highest": -priorities}[order]
        for at in np.argsort(ranks, kind="stable")[:count]:
            yield self._window(int(rows[at]), float(priorities[at]))

    def _window(self, row: int, priority: float) -> HeldWindow:
        assert self.steps is not None, "windows are made of steps"
        columns, ended, first = self.steps.columns, self.steps.ended, self.steps.first
        start = int(np.flatnonzero(columns["obs"] == row)[0])
        length = self.layout.window.length
        following = np.flatnonzero(first[start + 1 : start + length])
        stop = start + 1 + int(following[0]) if len(following) else min(start + length, len(first))
        last = stop - 1
        after = self.steps.final_obs[np.count_nonzero(ended[:last])] if ended[last] else columns["obs"][stop]
        how: Any = "terminated" if columns["terminated"][last] else "truncated" if ended[last] else ""
        sampled = int(self._sampled[row - self.oldest])
        return HeldWindow(
            row=row,
            actor=int(columns["actor"][start]),
            copy=int(columns["copy"][start]),
            age=int(columns["age"][start]),
            version=int(columns["version"][start]),
            priority=priority,
            sampled=None if sampled < 0 else sampled,
            actions=columns["action"][start:stop].tolist(),
            rewards=columns["reward"][start:stop].tolist(),
            ended=how,
            obs=[*columns["obs"][start:stop].tolist(), int(after)],
        )


def alive(shard: ShardContents, capacity: int) -> Iterator[tuple[Record, Unroll]]:
    """Yield the unrolls of which some rows are not overwritten, whole, the oldest first."""
    oldest = oldest_row(shard, capacity)
    for record in shard.records():
        if record.first_row + record.rows > oldest:
            yield record, wire.decode_unroll(record.unroll)


def alive_steps(shard: ShardContents, capacity: int) -> Iterator[Unroll]:
    """Yield the same with the steps that are alive, and no others."""
    oldest = oldest_row(shard, capacity)
    for record, unroll in alive(shard, capacity):
        kept = _without_dead(record, unroll, oldest)
        if kept.num_steps:
            yield kept


def oldest_row(shard: ShardContents, capacity: int) -> int:
    """Return the oldest row that a shard of this capacity still holds."""
    return max((segment.end_row for segment in shard.segments), default=0) - capacity


def observations(shard: ShardContents, rows: Collection[int]) -> dict[int, Array]:
    """Return the observations that lie in these rows."""
    found: dict[int, Array] = {}
    for record in shard.records():
        inside = [row for row in rows if record.first_row <= row < record.first_row + record.rows]
        if inside:
            unroll = wire.decode_unroll(record.unroll)
            obs = np.concatenate([unroll.columns["obs"][unroll.columns["acted"]], unroll.final_obs])
            found |= {row: obs[row - record.first_row] for row in inside}
    return found


def _without_dead(record: Record, unroll: Unroll, oldest: int) -> Unroll:
    return without_oldest(unroll, min(max(0, oldest - record.first_row), unroll.num_steps))


def _with_rows_for_obs(unroll: Unroll, first_row: int) -> Unroll:
    """Put in an observation's place the row in which it lies."""
    acted = unroll.columns["acted"]
    rows = first_row + (np.cumsum(acted) - 1).reshape(acted.shape)
    names = ("action", "reward", "terminated", "truncated", "version", "acted", "age")
    columns = {"obs": rows, **{name: unroll.columns[name] for name in names}}
    finals = first_row + unroll.num_steps + np.arange(len(unroll.final_at))
    return replace(unroll, columns=columns, final_obs=finals)


def _lean_shard(layout: Layout) -> ReplayShard:
    """Return a shard of the same rows whose observations are row numbers."""
    replay = layout.config.replay
    config = replace(replay, capacity=layout.capacity * replay.shards, capacity_bytes=0)
    spec = replace(layout.spec, obs=ROW, classes=())
    return ReplayShard(config, spec, layout.window, {}, np.random.default_rng(0), no_clock)


def _of_rows(index: Any, name: str, oldest: int, end: int) -> NDArray[np.int64]:
    """Return what an index says of each row, -1 where it says nothing."""
    found = np.full(end - oldest, -1, np.int64)
    if index is None or name not in index.arrays:
        return found
    first, known = index.meta["first"], index.arrays[name]
    low, high = max(first, oldest), min(first + len(known), end)
    if low < high:
        found[low - oldest : high - oldest] = known[low - first : high - first]
    return found


def pictures_of(shard: ShardContents, windows: Sequence[HeldWindow], env: str) -> list[list[Pixels]]:
    """Return the observations of windows as pictures, a list for each; DataError if they are none."""
    found = observations(shard, {row for window in windows for row in window.obs})
    rows = [[picture(found[row]) for row in window.obs if row in found] for window in windows]
    if any(pixels is None for row in rows for pixels in row):
        obs = next(iter(found.values()))
        raise DataError(f"frames must be pictures, and {env} has observations of {obs.dtype} {obs.shape}")
    return [[pixels for pixels in row if pixels is not None] for row in rows]
