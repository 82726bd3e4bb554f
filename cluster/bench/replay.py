"""The replay service: what a shard's own processor time is, and how much passes through Ray, in and out at once."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count, cycle
from statistics import median
from typing import Any

import numpy as np

from actors.envs import measure_spec
from cluster.bench.figure import Figure, Work, rates
from cluster.bench.neighbours import fresh_params, play
from cluster.bench.on_ray import calls_per_s, idle, round_trip, started_ray
from cluster.config import Config
from cluster.members import Members
from cluster.processes import ShardProcess
from cluster.roles import build_shard
from replay_server.router import Router
from starling import wire
from starling.metrics import Clock, Meter, no_clock
from starling.params import Params
from starling.spec import Spec
from starling.types import Progress, ReplaySink, ReplaySource, SampleRequest, Unroll

PER_REQUEST = 4  # batches that the sampler asks for at once
BATCH = 512  # windows of a sample, and steps of an unroll where a shard's own time is measured
PUSH = 256  # steps of an unroll that goes through Ray, at least
ROWS = 1_000_000  # in a shard whose own time is measured
WRITERS = 2
UNROLLS = 16  # played beforehand, and sent over and over
READY_LIMIT_S = 60.0
WINDOWS = 8
NO_OP = "an idle Ray call"


def measure(config: Config[Any], preset: str, seconds: float) -> list[Figure]:
    """Return a shard's own costs, then the throughput of all of them behind Ray."""
    spec = measure_spec(config.env)
    params = fresh_params(config, spec)
    with started_ray():
        return [*shard_costs(config, spec, params, seconds), *throughput(config, spec, params, seconds)]


def shard_costs(config: Config[Any], spec: Spec, params: Params, seconds: float) -> list[Figure]:
    """Return how long a shard of a million rows works for 512 steps, and for 512 windows and as many priorities."""
    config = replace(config, replay=replace(config.replay, capacity=ROWS, shards=1, min_windows=1))
    works = [_sampling(config, spec, params), _inserting(config, spec, params), round_trip(idle())]
    sample, insert, no_op = (1e6 / rate for rate in rates(works, seconds))
    settings = {"rows": ROWS, "windows": BATCH, "with": "decoding the call and encoding the answer"}
    return [
        Figure(name=name, value=value, unit="us", limit=no_op, limit_name=NO_OP, better="lower", settings=settings)
        for name, value in (("replay.sample_update_512", sample), ("replay.insert_512", insert))
    ]


def throughput(config: Config[Any], spec: Spec, params: Params, seconds: float) -> list[Figure]:
    """Return what two writers insert while one learner's router samples, nobody waiting for a ratio."""
    config = replace(config, replay=replace(config.replay, capacity=ROWS // 5, min_windows=BATCH, samples_per_insert=0))
    length = unroll_length(config, PUSH)
    push = length * config.env.copies
    no_op = calls_per_s(seconds / 4)
    members = Members(time.monotonic, _alarm)
    shards = [
        members.server("replay_server", shard, partial(build_shard, config, spec, shard, time.monotonic))
        for shard in range(config.replay.shards)
    ]
    for writer in range(WRITERS):
        write = partial(Writer, config, spec, params, writer, length, time.monotonic)
        members.loop("writer", writer, write, sink=[shards[writer % len(shards)]])
    members.loop("sampler", 0, partial(Sampler, config, time.monotonic), source=shards)
    inserted, sampled = _flows(members, seconds)
    no_op = median([no_op, calls_per_s(seconds / 4)])
    settings = {
        "shards": len(shards),
        "writers": WRITERS,
        "steps_per_push": push,
        "batch": BATCH,
        "batches_per_request": PER_REQUEST,
        "at_once": True,
    }
    limits: dict[str, Any] = {"limit_name": "as many in each idle Ray call", "settings": settings}
    return [
        Figure(name="replay.ray.insert_steps_per_s", value=inserted, unit="steps/s", limit=no_op * push, **limits),
        Figure(name="replay.ray.sample_windows_per_s", value=sampled, unit="windows/s", limit=no_op * BATCH, **limits),
    ]


class Writer:
    """Sends unrolls that were played beforehand, as fast as its shard acknowledges them."""

    def __init__(
        self,
        config: Config[Any],
        spec: Spec,
        params: Params,
        index: int,
        length: int,
        clock: Clock,
        sink: ReplaySink,
        generation: int,
    ) -> None:
        self._unrolls = endless(play(config, spec, params, index, length, UNROLLS))
        self._sink = sink
        self._meter = Meter(clock)

    def step(self) -> Progress:
        """Send one unroll, or say what for it waits."""
        if wait := self._sink.must_wait():
            return Progress(waits=wait)
        self._sink.insert(next(self._unrolls))
        self._meter.count("unrolls")
        return Progress(work={"unrolls": 1})

    def stats(self) -> dict[str, Any]:
        """Return how much was sent."""
        return self._meter.snapshot()


class Sampler:
    """Takes batches and gives every window a new priority: a learner whose updates take no time."""

    def __init__(self, config: Config[Any], clock: Clock, source: ReplaySource, generation: int) -> None:
        self._rng = np.random.default_rng(config.seed)
        self._router = Router(source, config.replay, self._rng, clock, BATCH, PER_REQUEST)
        self._meter = Meter(clock)

    def step(self) -> Progress:
        """Take one batch, or say what for it waits."""
        sampled = self._router.take()
        if isinstance(sampled, str):
            return Progress(waits=sampled)
        self._router.update_priorities(sampled.ticket, self._rng.random(len(sampled.ticket.keys)))
        self._meter.count("windows", len(sampled.ticket.keys))
        return Progress(work={"windows": len(sampled.ticket.keys)})

    def stats(self) -> dict[str, Any]:
        """Return how much was sampled."""
        return self._meter.snapshot()


def endless(unrolls: list[Unroll]) -> Iterator[Unroll]:
    """Yield the unrolls again and again, each time as a later part of the stream."""
    return (replace(unroll, sequence=sequence) for unroll, sequence in zip(cycle(unrolls), count()))


def unroll_length(config: Config[Any], steps: int) -> int:
    """Return how many steps of every copy make an unroll of at least so many."""
    return -(-steps // config.env.copies)


def _sampling(config: Config[Any], spec: Spec, params: Params) -> Work:
    shard = build_shard(config, spec, 0, no_clock)
    unrolls = endless(play(config, spec, params, 0, unroll_length(config, 16 * BATCH), UNROLLS))
    while shard.stats()["gauges"]["rows"] < ROWS:
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


def _inserting(config: Config[Any], spec: Spec, params: Params) -> Work:
    shard = build_shard(config, spec, 0, no_clock)
    played = play(config, spec, params, 0, unroll_length(config, BATCH), UNROLLS)
    packed = cycle([wire.encode_unroll(unroll) for unroll in played])
    sequence = count()

    def work() -> int:
        shard.insert(replace(wire.decode_unroll(next(packed)), sequence=next(sequence)))
        return 1

    return work


def _flows(members: Members, seconds: float) -> tuple[float, float]:
    """Return acknowledged steps and sampled windows per second: medians of short windows."""
    members.start()
    deadline = time.monotonic() + READY_LIMIT_S
    while not _counts(members)[1]:
        assert time.monotonic() < deadline, "the shards served nothing"
        _watch(members, 0.1)
    seen = []
    for _ in range(WINDOWS):
        before, began = _counts(members), time.monotonic()
        _watch(members, seconds / WINDOWS)
        passed = time.monotonic() - began
        seen.append([(after - b) / passed for b, after in zip(before, _counts(members), strict=True)])
    members.stop()
    inserted, sampled = zip(*seen, strict=True)
    return median(inserted), median(sampled)


def _counts(members: Members) -> tuple[int, int]:
    return members.total("replay_server", "env_steps"), members.total("sampler", "windows")


def _watch(members: Members, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        members.watch()
        if time.monotonic() >= until:
            return
        time.sleep(0.02)


def _alarm(what: str, **facts: Any) -> None:
    raise AssertionError(f"{what}: {facts}")
