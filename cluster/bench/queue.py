"""The queue of unrolls: how many pass through Ray to a learner whose updates take no time, beside a copy of them."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import ray

from actors.envs import measure_spec
from cluster.bench.figure import Figure, Work, rates
from cluster.bench.flows import READY_LIMIT_S, WINDOWS, Writer, alarm
from cluster.bench.neighbours import Taker, fresh_params, play
from cluster.bench.on_ray import calls_per_s, started_ray
from cluster.config import QueueRun
from cluster.members import Members
from starling import wire
from starling.metrics import Clock
from starling.params import Params
from starling.spec import Spec
from starling.types import ReplaySink, Unroll

UNROLLS = 16
TICK_S = 0.02


def measure(config: QueueRun[Any], preset: str, seconds: float) -> list[Figure]:
    """Return the unrolls per second that all actors send and a learner takes."""
    spec = measure_spec(config.env)
    params = fresh_params(config, spec)
    packed = wire.encode_whole(played(config, spec, params, 0)[0])
    with started_ray():
        passed = _flow(config, spec, params, seconds / 2)
        (copies,) = rates([_copying(packed)], seconds / 4)
        calls = calls_per_s(seconds / 4)
    settings = {"bytes": packed.nbytes, "actors": config.actor.num, "capacity": config.queue.capacity}
    return [
        Figure(
            name="queue.unrolls_per_s",
            value=passed,
            unit="unrolls/s",
            limit=1.0 / (1.0 / calls + 1.0 / copies),
            limit_name="an idle Ray call, a memory copy",
            settings=settings,
        )
    ]


def played(config: QueueRun[Any], spec: Spec, params: Params, actor: int) -> list[Unroll]:
    """Return what an actor plays."""
    return play(config, spec, params, actor, config.actor.unroll_length, UNROLLS)


def _flow(config: QueueRun[Any], spec: Spec, params: Params, seconds: float) -> float:
    members = Members(time.monotonic, alarm)
    taker = members.loop("taker", 0, partial(Taker, config, time.monotonic))
    for actor in range(config.actor.num):
        write = partial(_writer, partial(played, config, spec, params, actor), time.monotonic)
        members.loop("actor", actor, write, learner=[taker])
    members.start()
    deadline = time.monotonic() + READY_LIMIT_S
    while not members.total("taker", "unrolls"):
        assert time.monotonic() < deadline, "nothing came through the queue"
        members.watch()
        time.sleep(0.1)
    seen = [_taken_per_s(members, seconds / WINDOWS) for _ in range(WINDOWS)]
    members.stop()
    return median(seen)


def _writer(play: Callable[[], Sequence[Unroll]], clock: Clock, learner: ReplaySink, generation: int = 0) -> Writer:
    return Writer(play, clock, learner)


def _taken_per_s(members: Members, seconds: float) -> float:
    """Return the rate over this time, or over the time until something came."""
    before, began = _taken(members), time.monotonic()
    while time.monotonic() < began + seconds or _taken(members) == before:
        members.watch()
        time.sleep(min(seconds, TICK_S))
    after, passed = _taken(members), time.monotonic() - began
    return (after - before) / passed


def _taken(members: Members) -> int:
    beat = ray.get(members.handle("taker[0]").beat.remote())
    return int(beat.stats["counts"]["unrolls"])


def _copying(packed: np.ndarray[Any, Any]) -> Work:
    def work() -> int:
        packed.copy()
        return 1

    return work
