"""Gradients through Ray: how many of them two workers push, beside what a slice applies in its own process."""

import time
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from cluster.bench.figure import Figure, Work, rates
from cluster.handles import Peer
from cluster.processes import LoopProcess, SliceProcess
from param_server.config import SliceConfig
from param_server.local import LocalSlices, make_slices
from param_server.slices import ParamSlice
from starling.gradients import Gradient, GradientSink, Versions
from starling.metrics import Clock, Meter, no_clock
from starling.types import Progress

SIZES = {"mlp": 9_155, "cnn": 1_686_180}
"""Parameters: policy and value for CartPole, each of two hidden layers of 64, and the Nature CNN for four actions."""

PUSHERS = 2
ENV_STEPS = 80  # played for a gradient
READY_LIMIT_S = 60.0
WINDOWS = 8


def measure(seconds: float) -> list[Figure]:
    """Return the pushes per second of either size; Ray has been started."""
    return [_figure(name, size, seconds / 2) for name, size in SIZES.items()]


class Pusher:
    """Pushes one gradient over and over, each after the answer to the last: a worker whose playing takes no time."""

    def __init__(self, size: int, worker: int, clock: Clock, gradients: GradientSink, generation: int) -> None:
        self._values = _gradient(size)
        self._sink = gradients
        self._sender = {"worker": worker, "generation": generation}
        self._versions: Versions = ()
        self._steps = count()
        self._meter = Meter(clock)

    def step(self) -> Progress:
        """Push, or say what for it waits."""
        if wait := self._sink.must_wait():
            return Progress(waits=wait)
        if fresh := self._sink.fetch(self._versions):
            self._versions, _ = fresh
        push(self._sink, self._versions, self._values, next(self._steps), **self._sender)
        self._meter.count("pushes")
        return Progress(work={"pushes": 1})

    def stats(self) -> dict[str, Any]:
        """Return how much was pushed."""
        return self._meter.snapshot()


def push(
    sink: GradientSink, versions: Versions, values: NDArray[np.float32], step: int, worker: int = 0, generation: int = 0
) -> None:
    """Send a gradient of a norm that is known."""
    gradient = Gradient(
        worker=worker,
        generation=generation,
        step=step,
        versions=versions,
        values=values,
        norm=1.0,
        env_steps=ENV_STEPS,
    )
    sink.push(gradient)


def _figure(name: str, size: int, seconds: float) -> Figure:
    config = SliceConfig()
    (bare,) = rates([_applying(config, size)], seconds / 4)
    pushes = _flow(config, size, seconds / 2)
    bare = median([bare, *rates([_applying(config, size)], seconds / 4)])
    return Figure(
        name=f"params.push_per_s.{name}",
        value=pushes,
        unit="pushes/s",
        limit=bare,
        limit_name="applied in its own process",
        settings={"parameters": size, "slices": config.slices, "pushers": PUSHERS, "optimizer": config.optimizer},
    )


def _applying(config: SliceConfig, size: int) -> Work:
    sink = LocalSlices(make_slices(config, np.zeros(size, np.float32), no_clock))
    values, steps = _gradient(size), count()

    def work() -> int:
        push(sink, (0,) * config.slices, values, next(steps))
        return 1

    return work


def _flow(config: SliceConfig, size: int, seconds: float) -> float:
    """Return the pushes that the slice applied per second: the median of short windows."""
    handle = _remote(SliceProcess).remote(partial(ParamSlice, config, np.zeros(size, np.float32), time.monotonic))
    peers = {"gradients": [Peer("param_server[0]", handle, 0)]}
    pushers = [
        _remote(LoopProcess).remote(f"pusher[{worker}]", partial(Pusher, size, worker, time.monotonic), 0, peers)
        for worker in range(PUSHERS)
    ]
    deadline = time.monotonic() + READY_LIMIT_S
    while not all(beat.stats.get("counts", {}).get("pushes") for beat in ray.get([p.beat.remote() for p in pushers])):
        assert time.monotonic() < deadline, "nothing was pushed"
        time.sleep(0.1)
    seen = [_pushes_per_s(handle, seconds / WINDOWS) for _ in range(WINDOWS)]
    for process in [*pushers, handle]:
        ray.kill(process)
    return median(seen)


def _pushes_per_s(handle: Any, seconds: float) -> float:
    """Return the rate over this time, or over the time until something was applied."""
    before, began = _applied(handle), time.monotonic()
    after = before
    while after == before:
        assert time.monotonic() - began < seconds + READY_LIMIT_S, "nothing is applied any more"
        time.sleep(seconds)
        after = _applied(handle)
    return (after - before) / (time.monotonic() - began)


def _applied(handle: Any) -> int:
    counts: dict[str, int] = ray.get(handle.beat.remote()).stats["counts"]
    return counts.get("pushes_applied", 0)


def _gradient(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def _remote(process: type) -> Any:
    return ray.remote(process).options(num_cpus=0.1)
