"""Shards with a log on the disk, for the tests of what outlives them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replay_server.config import ReplayConfig
from replay_server.durable import DurableShard
from replay_server.journal import Journal
from replay_server.log import LIVE, LogReader, segment_paths
from replay_server.segments import Record
from replay_server.shard import ReplayShard
from starling.metrics import Clock, no_clock
from starling.state import State
from starling.types import Unroll
from starling.windows import Window
from starling.wire import decode_unroll
from tests.replay_worlds import CountingWorld, draw, make_shard

WINDOW = Window(length=3, every_obs=True)


def durable(
    folder: Path,
    shard: ReplayShard | None = None,
    background: bool = False,
    segment_bytes: int = 3_000,
    clock: Clock = no_clock,
    journal: dict[str, Any] | None = None,
    **config: Any,
) -> DurableShard:
    """Return a shard whose log is in `folder`; `journal` replaces what it does to the disk."""
    settings = {"capacity": 200, **config}
    shard = shard or make_shard(WINDOW, **settings)
    log = Journal(folder, ReplayConfig(**settings), clock, background, segment_bytes, **(journal or {}))
    return DurableShard(shard, log, clock)


def unrolls_of(count: int, actors: int = 2, length: int = 4, seed: int = 0, **world: Any) -> list[Unroll]:
    """Return unrolls of several actors in turn."""
    worlds = [CountingWorld(np.random.default_rng(seed + actor), actor=actor, **world) for actor in range(actors)]
    return [worlds[n % actors].unroll(length) for n in range(count)]


def logged(folder: Path) -> list[Record]:
    """Return the records of a live log."""
    return list(LogReader(segment_paths(folder / LIVE)))


def senders(records: Sequence[Record]) -> list[tuple[int, int, int]]:
    """Return who sent each record, and as its how-manieth."""
    unrolls = [decode_unroll(record.unroll) for record in records]
    return [(unroll.actor, unroll.generation, unroll.sequence) for unroll in unrolls]


def names(unrolls: Sequence[Unroll]) -> list[tuple[int, int, int]]:
    """Return the same of unrolls."""
    return [(unroll.actor, unroll.generation, unroll.sequence) for unroll in unrolls]


def taken(shard: DurableShard, name: str) -> State:
    """Return a snapshot that was taken inline."""
    shard.snapshot(name)
    meta = shard.taken(name)
    assert meta is not None
    return meta


def assert_same_windows(shard: ReplayShard | DurableShard, other: ReplayShard | DurableShard) -> None:
    """Demand that two shards hold the same windows with the same masses under the same rows."""
    mine, theirs = shard.index(), other.index()
    assert (mine.meta["first"], mine.meta["end"]) == (theirs.meta["first"], theirs.meta["end"])
    np.testing.assert_array_equal(mine.arrays["masses"], theirs.arrays["masses"])
    first, second = draw(shard, 2_000), draw(other, 2_000)
    keys, ours, others = np.intersect1d(first.keys, second.keys, return_indices=True)
    assert len(keys) >= 0.9 * np.count_nonzero(mine.arrays["masses"])
    for name, column in first.columns.items():
        np.testing.assert_array_equal(column[:, ours], second.columns[name][:, others])
