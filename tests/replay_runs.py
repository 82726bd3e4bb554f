"""Runs whose replay was filled by hand: folders as a runtime leaves them, or is about to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import Config, dump, load
from cluster.contents import replay_folder
from cluster.replay_view import Layout
from cluster.roles import build_algorithm
from cluster.run_folder import RunFolder
from replay_server.durable import DurableShard
from replay_server.journal import Journal
from replay_server.shard import ReplayShard
from starling.flags import Flag
from starling.metrics import no_clock
from starling.types import Unroll

SETTINGS = {
    "env.id": "tests.screens:Still",
    "runtime": "local",
    "actor.num": "2",
    "algorithm.n-step": "3",
    "replay.alpha": "1.0",
}


def settings(**more: str) -> Config[Any]:
    """Return the settings of a small run; a dot in a name is written as two underscores."""
    chosen = SETTINGS | {name.replace("__", ".").replace("_", "-"): value for name, value in more.items()}
    return load("gridworld", [Flag(f"--{name}", [value]) for name, value in chosen.items()])


def run_with(
    runs: Path,
    *shards: Sequence[Unroll],
    snapshot: str | None = None,
    rows: Sequence[dict[str, Any]] = (),
    name: str = "r",
    **more: str,
) -> Path:
    """Make a run's folder, each shard of which was sent these unrolls, and then took a snapshot."""
    config = settings(replay__shards=str(len(shards) or 1), **more)
    with RunFolder.create(runs, name, dump(config), {"started": "2026-01-01T00:00:00", "host": "here"}) as folder:
        for row in rows:
            folder.add_metrics(row)
    for index, sent in enumerate(shards):
        shard = shard_of(runs / name, config, index)
        for unroll in sent:
            shard.insert(unroll)
        if snapshot:
            shard.snapshot(snapshot)
        shard.close()
    return runs / name


def shard_of(run: Path, config: Config[Any], index: int) -> DurableShard:
    """Return an empty shard of a run that writes down what it stores."""
    layout, algorithm = Layout.of(config), build_algorithm(config)
    rng = np.random.default_rng(index)
    columns = algorithm.columns(layout.spec)
    shard = ReplayShard(config.replay, layout.spec, algorithm.window, columns, rng, no_clock)
    folder = replay_folder(config.replay, run) / f"shard-{index}"
    folder.mkdir(parents=True, exist_ok=True)
    return DurableShard(shard, Journal(folder, config.replay, no_clock, background=False), no_clock)
