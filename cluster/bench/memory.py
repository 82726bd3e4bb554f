"""What a step costs in memory, all in: a full shard in a process of its own, whose resident memory grew by so much.

Started as `python -m cluster.bench.memory KIND ROWS`; prints the bytes per row.
"""

import subprocess
import sys
from dataclasses import replace
from itertools import count

import numpy as np
import psutil

from cluster.bench.figure import Figure
from cluster.bench.frames import ATARI, PONG, game
from cluster.budget import available_bytes
from cluster.user_folder import own_module
from replay_server.config import ReplayConfig
from replay_server.shard import ReplayShard
from replay_server.storage import columns_of
from starling.metrics import no_clock
from starling.spec import ArraySpec, Spec
from starling.types import Unroll
from starling.windows import Window

CARTPOLE = Spec(env="CartPole-v1", obs=ArraySpec((4,), "float32"), action=ArraySpec((), "int64"), num_actions=2)
KINDS = {"atari": (PONG, ATARI), "cartpole": (CARTPOLE, Window(length=3))}
ROWS = 1_000_000
FEW = 100_000  # where the memory or the time is short
LONG_S = 3.0
LIMIT_S = 120.0


def measure(seconds: float) -> list[Figure]:
    """Return the bytes per step of a shard of frames and of one of small rows."""
    figures = []
    for kind, (spec, window) in KINDS.items():
        own = sum(column.nbytes for column in columns_of(spec, {}).values())
        fits = 2 * ROWS * own < available_bytes()
        rows = ROWS if fits and seconds >= LONG_S else FEW
        limit, of = (own, "its columns' own") if kind == "cartpole" else (spec.obs.nbytes, "its frame's own")
        figures.append(
            Figure(
                name=f"replay.bytes_per_step.{kind}",
                value=_in_its_own_process(kind, rows),
                unit="bytes",
                limit=limit,
                limit_name=of,
                better="lower",
                settings={"rows": rows, "stack": window.stack, "window": window.length},
            )
        )
    return figures


def _in_its_own_process(kind: str, rows: int) -> float:
    command = own_module("cluster.bench.memory", kind, str(rows))
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout)


def bytes_per_row(kind: str, rows: int) -> float:
    """Fill a shard to its last row, and half as much again, and return by how much this process grew."""
    spec, window = KINDS[kind]
    unrolls = game(1) if kind == "atari" else [_small(spec)]
    before = psutil.Process().memory_info().rss
    config = ReplayConfig(capacity=rows, min_windows=1)
    shard = ReplayShard(config, spec, window, {}, np.random.default_rng(0), no_clock)
    for sequence in count():
        shard.insert(replace(unrolls[0], sequence=sequence))
        if shard.rows[1] >= 3 * rows // 2:
            return (psutil.Process().memory_info().rss - before) / rows
    raise AssertionError("a count has no end")


def _small(spec: Spec) -> Unroll:
    frames = game(1)[0]
    obs = np.ones((*frames.columns["acted"].shape, *spec.obs.shape), spec.obs.dtype)
    return replace(frames, columns=frames.columns | {"obs": obs}, final_obs=spec.obs.zeros(0))


if __name__ == "__main__":
    print(bytes_per_row(sys.argv[1], int(sys.argv[2])))
