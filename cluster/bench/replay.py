"""The replay service: where a shard's processor time is, and how much passes through Ray, in and out at once."""

import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from actors.envs import measure_spec
from cluster.bench import frames, lasting, memory
from cluster.bench.figure import Figure, Work, typical_s
from cluster.bench.flows import BATCH, PER_CALL, Flow, Sampler, Writer, alarm, endless, measure_flow
from cluster.bench.neighbours import fresh_params, play
from cluster.bench.on_ray import calls_per_s, idle, round_trip, started_ray
from cluster.config import ReplayRun
from cluster.contents import Replay
from cluster.members import Members
from cluster.processes import ShardProcess
from cluster.roles import build_shard
from starling import wire
from starling.metrics import no_clock
from starling.params import Params
from starling.spec import Spec
from starling.types import SampleRequest

PUSH = 256  # steps of an unroll that goes through Ray, at least
ROWS = 1_000_000  # in a shard whose own time is measured
WRITERS = 2
UNROLLS = 16  # played beforehand, and sent over and over
NO_OP = "an idle Ray call"


def measure(config: ReplayRun[Any], preset: str, seconds: float) -> list[Figure]:
    """Return a shard's own costs, the throughput of all of them behind Ray, and what memory and disk cost."""
    spec = measure_spec(config.env)
    params = fresh_params(config, spec)
    with tempfile.TemporaryDirectory(prefix="starling-bench-") as folder:
        kept = Path(folder)
        with started_ray():
            own = shard_costs(config, spec, params, kept, seconds)
            through_ray = throughput(config, spec, params, kept, seconds)
            inserted = frames.insert_through_ray(config, seconds)
        played = play(config, spec, params, 0, unroll_length(config, BATCH), UNROLLS)
        outlives = lasting.measure(config, spec, played, kept, seconds)
    return [*own, *through_ray, *inserted, *outlives, *frames.gathers(seconds), *memory.measure(seconds)]


def shard_costs(config: ReplayRun[Any], spec: Spec, params: Params, kept: Path, seconds: float) -> list[Figure]:
    """Return how long a shard of a million rows works for 512 windows and as many priorities, and for 512 steps."""
    config = replace(config, replay=replace(config.replay, capacity=ROWS, shards=1, min_windows=1))
    settings: dict[str, Any] = {"rows": ROWS, "windows": BATCH, "durability": config.replay.durability}
    settings["with"] = "decoding the call and encoding the answer"
    limits: dict[str, Any] = {"limit_name": NO_OP, "better": "lower", "settings": settings}
    call, figures = round_trip(idle()), []
    for name, begin in (
        ("replay.sample_update_512", partial(_sampling, config, spec, params)),
        ("replay.insert_512", partial(_inserting, config, spec, params, kept / "own")),
    ):  # one after the other: two shards would take turns in the processor's cache
        value, no_op = (1e6 * time_s for time_s in typical_s([begin(), call], seconds / 2))
        figures.append(Figure(name=name, value=value, unit="us", limit=no_op, **limits))
    return figures


def throughput(config: ReplayRun[Any], spec: Spec, params: Params, kept: Path, seconds: float) -> list[Figure]:
    """Return what two writers insert while one learner's router samples, and how two shards compare with one."""
    no_op = calls_per_s(seconds / 4)
    as_set = _flow(config, spec, params, kept, config.replay.shards, seconds)
    one, two = (
        as_set if config.replay.shards == shards else _flow(config, spec, params, kept, shards, seconds)
        for shards in (1, 2)
    )
    no_op = median([no_op, calls_per_s(seconds / 4)])
    push = _pushed(config) * config.env.copies
    settings = {
        "shards": config.replay.shards,
        "writers": WRITERS,
        "steps_per_push": push,
        "batch": BATCH,
        "batches_per_request": PER_CALL * config.replay.shards,
        "durability": config.replay.durability,
        "at_once": True,
    }
    limits: dict[str, Any] = {"limit_name": "as many in each idle Ray call", "settings": settings}
    return [
        Figure(name="replay.ray.insert_steps_per_s", value=as_set.steps, unit="steps/s", limit=no_op * push, **limits),
        Figure(
            name="replay.ray.sample_windows_per_s",
            value=as_set.windows,
            unit="windows/s",
            limit=no_op * BATCH,
            **limits,
        ),
        Figure(
            name="replay.two_shards",
            value=sum(two),
            unit="steps and windows/s",
            limit=sum(one),
            limit_name="one shard",
            settings=settings | {"shards": 2, "batches_per_request": PER_CALL * 2},
        ),
    ]


def unroll_length(config: ReplayRun[Any], steps: int) -> int:
    """Return how many steps of every copy make an unroll of at least so many."""
    return -(-steps // config.env.copies)


def _pushed(config: ReplayRun[Any]) -> int:
    return max(config.actor.unroll_length, unroll_length(config, PUSH))


def _flow(config: ReplayRun[Any], spec: Spec, params: Params, kept: Path, shards: int, seconds: float) -> Flow:
    settings = replace(config.replay, capacity=ROWS // 5, min_windows=BATCH, samples_per_insert=0, shards=shards)
    config = replace(config, replay=settings, actor=replace(config.actor, num=WRITERS))
    replay = Replay(folder=str(kept / f"flow-{shards}"))
    members = Members(time.monotonic, alarm)
    servers = [
        members.server("replay_server", shard, partial(build_shard, config, spec, shard, time.monotonic, replay=replay))
        for shard in range(shards)
    ]
    for writer in range(WRITERS):
        played = partial(play, config, spec, params, writer, _pushed(config), UNROLLS)
        members.loop("writer", writer, partial(Writer, played, time.monotonic), sink=[servers[writer % shards]])
    members.loop("sampler", 0, partial(Sampler, config, time.monotonic), source=servers)
    return measure_flow(members, seconds)


def _sampling(config: ReplayRun[Any], spec: Spec, params: Params) -> Work:
    shard = build_shard(config, spec, 0, no_clock)
    unrolls = endless(play(config, spec, params, 0, unroll_length(config, 16 * BATCH), UNROLLS))
    while shard.rows[1] < ROWS:
        shard.insert(next(unrolls))
    process = ShardProcess(lambda tell: shard)
    drawn = [shard.sample(_request(np.empty(0, np.int64))).keys for _ in range(UNROLLS)]
    requests = cycle([wire.encode_request(_request(keys)) for keys in drawn])

    def work() -> int:
        process.sample(next(requests))
        return 1

    return work


def _request(keys: np.ndarray[Any, np.dtype[np.int64]]) -> SampleRequest:
    priorities = np.linspace(0.1, 1.0, len(keys))
    return SampleRequest(counts=[BATCH], keys=keys, priorities=priorities, insert_limit=1 << 60)


def _inserting(config: ReplayRun[Any], spec: Spec, params: Params, kept: Path) -> Work:
    shard = build_shard(config, spec, 0, time.monotonic, replay=Replay(folder=str(kept)))
    return lasting.inserting(shard, play(config, spec, params, 0, unroll_length(config, BATCH), UNROLLS))
