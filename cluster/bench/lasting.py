"""What it costs that a shard's contents outlive it: inserts in each mode, snapshots while inserts go on, restoring."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path
from typing import Any

from cluster.bench.figure import Figure, Work, rates
from cluster.bench.flows import BATCH, endless
from cluster.config import ReplayRun
from cluster.contents import SHARD, Replay, shard_folder
from cluster.roles import build_shard
from replay_server.durable import DurableShard
from replay_server.snapshots import INDEX, SNAPSHOTS
from starling import wire
from starling.spec import Spec
from starling.types import Unroll

ROWS = 1_000_000
MODES = ("none", "snapshot", "journal")
POLL_S = 0.001
GB = 1e9
SNAPSHOT = "bench"


def measure(config: ReplayRun[Any], spec: Spec, unrolls: Sequence[Unroll], kept: Path, seconds: float) -> list[Figure]:
    """Return what an insert costs in each mode, and what a snapshot and restoring it cost."""
    return [*modes(config, spec, unrolls, kept, seconds), *snapshot(config, spec, unrolls, kept, seconds)]


def modes(config: ReplayRun[Any], spec: Spec, unrolls: Sequence[Unroll], kept: Path, seconds: float) -> list[Figure]:
    """Return the microseconds of inserting 512 steps, the time in which the disk makes writers wait included."""
    shards = [_shard(config, spec, kept / mode, ROWS // 2, mode) for mode in MODES]
    costs = [1e6 / rate for rate in rates([inserting(shard, unrolls) for shard in shards], seconds)]
    for shard in shards:
        shard.close()
    settings = {"rows": ROWS // 2, "steps": BATCH, "fsync_every_s": config.replay.fsync_every_s}
    return [
        Figure(
            name=f"replay.durability.{mode}",
            value=cost,
            unit="us",
            limit=costs[0],
            limit_name="nothing kept",
            better="lower",
            settings=settings | {"bytes": wire.encode_unroll(unrolls[0]).nbytes},
        )
        for mode, cost in zip(MODES, costs, strict=True)
    ]


def inserting(shard: DurableShard, unrolls: Sequence[Unroll]) -> Work:
    """Return the work of inserting one unroll as its process does, waiting where its writer would."""
    packed = cycle([wire.encode_unroll(unroll) for unroll in unrolls])
    sequence = count()

    def work() -> int:
        while shard.must_wait():
            time.sleep(POLL_S)
        buffer = next(packed)
        shard.insert(wire.decode_packed(buffer)._replace(sequence=next(sequence)), buffer)
        return 1

    return work


def snapshot(config: ReplayRun[Any], spec: Spec, unrolls: Sequence[Unroll], kept: Path, seconds: float) -> list[Figure]:
    """Return the longest insert while a snapshot is taken, and the seconds per gigabyte of taking and restoring it."""
    rows = ROWS if seconds >= 1.0 else ROWS // 50
    folder = kept / "snapshot"
    shard = _shard(config, spec, folder, rows, "journal")
    stream = endless(unrolls)
    while shard.rows[1] < rows:
        shard.insert(next(stream))
    quiet = max(_timed_insert(shard, next(stream)) for _ in range(50))
    began, stalls = time.perf_counter(), list[float]()
    shard.snapshot(SNAPSHOT)
    stalls.append(time.perf_counter() - began)
    while (taken := shard.taken(SNAPSHOT)) is None:
        stalls.append(_timed_insert(shard, next(stream)))
    took = time.perf_counter() - began
    shard.close()
    files = [path for path in (shard_folder(folder, 0) / SNAPSHOTS).rglob("*") if path.is_file()]
    size = sum(file.stat().st_size for file in files)
    reading = _timed(lambda: [file.read_bytes() for file in files])
    index = next(file.read_bytes() for file in files if file.name == INDEX)
    writing = _timed(lambda: (kept / "index").write_bytes(index))
    states = {f"{SHARD}[0]": taken}
    restoring = _timed(lambda: _shard(config, spec, folder, rows, "journal", contents="exact", states=states).close())
    settings = {"rows": rows, "megabytes": round(size / 1e6, 1), "inserts_meanwhile": len(stalls) - 1}
    return [
        Figure(name=name, value=value, unit=unit, limit=limit, limit_name=of, better="lower", settings=settings)
        for name, value, unit, limit, of in (
            ("replay.snapshot_stall_ms", 1e3 * max(stalls), "ms", 1e3 * quiet, "the longest of 50 quiet inserts"),
            ("replay.snapshot_s_per_gb", took / size * GB, "s/GB", writing / size * GB, "writing its index"),
            ("replay.restore_s_per_gb", restoring / size * GB, "s/GB", reading / size * GB, "reading its files"),
        )
    ]


def _shard(
    config: ReplayRun[Any], spec: Spec, folder: Path, rows: int, durability: str, **contents: Any
) -> DurableShard:
    settings: Any = {"capacity": rows, "shards": 1, "min_windows": 1, "durability": durability}
    config = replace(config, runtime="ray", replay=replace(config.replay, **settings))
    return build_shard(config, spec, 0, time.monotonic, replay=Replay(folder=str(folder), **contents))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _timed_insert(shard: DurableShard, unroll: Unroll) -> float:
    packed = wire.encode_unroll(unroll)
    return _timed(lambda: shard.insert(unroll, packed))
