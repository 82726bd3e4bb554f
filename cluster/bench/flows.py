"""What passes through Ray when writers insert and a learner samples at once, nobody waiting for a ratio."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, cycle
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from cluster.config import ReplayRun
from cluster.members import Members
from replay_server.router import Router
from starling.metrics import Clock, Meter
from starling.types import Progress, ReplaySink, ReplaySource, Unroll

BATCH = 512  # windows
PER_CALL = 4  # batches' worth of windows in each call to a shard, however many shards there are
READY_LIMIT_S = 60.0
TICK_S = 0.02
WINDOWS = 8


class Flow(NamedTuple):
    """What was acknowledged and served per second: medians of short windows."""

    steps: float
    windows: float


class Writer:
    """Sends unrolls that were played beforehand, as fast as its shard acknowledges them."""

    def __init__(
        self, play: Callable[[], Sequence[Unroll]], clock: Clock, sink: ReplaySink, generation: int = 0
    ) -> None:
        self._unrolls = endless(play())
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
    """Takes batches and gives every window a new priority: a learner whose updates take no time.

    It asks for as many batches more as there are shards more, as whoever adds shards for speed has to: a call costs,
    and not the windows that it carries.
    """

    def __init__(self, config: ReplayRun[Any], clock: Clock, source: ReplaySource, generation: int) -> None:
        self._rng = np.random.default_rng(config.seed)
        self._router = Router(source, config.replay, self._rng, clock, BATCH, PER_CALL * source.num_shards)
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


def endless(unrolls: Sequence[Unroll]) -> Iterator[Unroll]:
    """Yield the unrolls again and again, each time as a later part of the stream."""
    return (replace(unroll, sequence=sequence) for unroll, sequence in zip(cycle(unrolls), count()))


def measure_flow(members: Members, seconds: float) -> Flow:
    """Start all roles, wait until everything flows, and measure."""
    members.start()
    deadline = time.monotonic() + READY_LIMIT_S
    while not _flows(members):
        assert time.monotonic() < deadline, "the shards served nothing"
        _watch(members, 0.1)
    seen = []
    for _ in range(WINDOWS):
        before, began = _counts(members), time.monotonic()
        _watch(members, seconds / WINDOWS)
        while not _flows(members, before):
            assert time.monotonic() - began < seconds + READY_LIMIT_S, "the shards serve nothing any more"
            _watch(members, TICK_S)
        passed = time.monotonic() - began
        seen.append([(after - b) / passed for b, after in zip(before, _counts(members), strict=True)])
    members.stop()
    inserted, sampled = zip(*seen, strict=True)
    return Flow(median(inserted), median(sampled))


def alarm(what: str, **facts: Any) -> None:
    """End a benchmark in which a role dies."""
    raise AssertionError(f"{what}: {facts}")


def _flows(members: Members, since: tuple[int, int] = (0, 0)) -> bool:
    """Say whether steps came since these counts, and windows if anybody samples."""
    steps, windows = _counts(members)
    return steps > since[0] and (windows > since[1] or "sampler[0]" not in members.names())


def _counts(members: Members) -> tuple[int, int]:
    return members.total("replay_server", "env_steps"), members.total("sampler", "windows")


def _watch(members: Members, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        members.watch()
        if time.monotonic() >= until:
            return
        time.sleep(TICK_S)
