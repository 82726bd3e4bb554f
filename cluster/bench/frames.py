"""Windows of frames gathered for the learner, beside a bare copy of as many bytes, and inserted through Ray."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.bench.figure import Figure, Work, rates
from cluster.bench.flows import Writer, alarm, endless, measure_flow
from cluster.bench.on_ray import calls_per_s
from cluster.config import ReplayRun
from cluster.members import Members
from replay_server.config import ReplayConfig
from replay_server.durable import DurableShard
from replay_server.shard import ReplayShard
from starling import wire
from starling.metrics import no_clock
from starling.spec import ArraySpec, Spec
from starling.types import SampleRequest, Unroll
from starling.windows import Window

PONG = Spec(env="Pong", obs=ArraySpec((84, 84), "uint8"), action=ArraySpec((), "int64"), num_actions=6)
ATARI = Window(length=1, stack=4)
R2D2 = Window(length=80, period=40, burn_in=40, every_obs=True)
STATE = {"h": ArraySpec((512,), "float32"), "c": ArraySpec((512,), "float32")}
ROWS = 50_000
STEPS = 256  # of an unroll
UNROLLS = 8
REQUESTS = 16


def gathers(seconds: float) -> list[Figure]:
    """Return how many windows a second a shard answers with, beside a bare gather of the same frames."""
    return [
        _gather("replay.atari_gather", ATARI, {}, 512, seconds),
        _gather("replay.r2d2_gather", R2D2, STATE, 64, seconds),
    ]


def insert_through_ray(config: ReplayRun[Any], seconds: float) -> list[Figure]:
    """Return how many frames one writer inserts through Ray, compressed on their way."""
    no_op = calls_per_s(seconds / 4)
    members = Members(time.monotonic, alarm)
    server = members.server("replay_server", 0, partial(build_frames_shard, config.seed))
    members.loop("writer", 0, partial(Writer, partial(game, UNROLLS), time.monotonic), sink=[server])
    inserted = measure_flow(members, seconds).steps
    unroll = game(1)[0]
    ratio = unroll.columns["obs"].nbytes / wire.encode_unroll(unroll).nbytes
    return [
        Figure(
            name="replay.frames_insert",
            value=inserted,
            unit="frames/s",
            limit=no_op * STEPS,
            limit_name="as many in each idle Ray call",
            settings={"steps_per_push": STEPS, "smaller_by": round(ratio, 1), "frame": "84x84"},
        )
    ]


def build_frames_shard(seed: int, generation: int = 0, tell: Any = None) -> DurableShard:
    """Return a shard of frames that never makes its writer wait."""
    config = ReplayConfig(capacity=ROWS, min_windows=1 << 60, samples_per_insert=0.0)
    rng = np.random.default_rng(seed)
    return DurableShard(ReplayShard(config, PONG, ATARI, {}, rng, no_clock), None, no_clock)


def game(count: int, states: Mapping[str, ArraySpec] | None = None, period: int = 1) -> list[Unroll]:
    """Return consecutive unrolls of one copy of what looks like a game: little changes from frame to frame."""
    frames = _screens(count * STEPS)
    ages = np.arange(count * STEPS)
    return [
        _unroll(frames[start : start + STEPS], ages[start : start + STEPS], states or {}, period)
        for start in range(0, count * STEPS, STEPS)
    ]


def _screens(count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    background = np.kron(rng.integers(0, 256, (12, 12), np.uint8), np.ones((7, 7), np.uint8))
    frames = np.repeat(background[None], count, axis=0)
    for sprite in range(1, 6):
        for index, frame in enumerate(frames):
            top, left = (index * sprite) % 76, (index * (7 - sprite) + 20 * sprite) % 76
            frame[top : top + 8, left : left + 4] = 40 * sprite
    return frames


def _unroll(frames: NDArray[np.uint8], age: NDArray[np.int64], states: Mapping[str, ArraySpec], period: int) -> Unroll:
    steps = len(frames)
    zeros = {
        name: np.zeros((steps, 1), dtype) for name, dtype in (("action", "i8"), ("reward", "f4"), ("version", "i8"))
    }
    flags = {name: np.full((steps, 1), name == "acted") for name in ("terminated", "truncated", "acted")}
    start_at = np.flatnonzero(age % period == 0) if states else np.empty(0, np.int64)
    return Unroll(
        actor=0,
        generation=0,
        sequence=0,
        columns={"obs": frames[:, None], **zeros, **flags, "age": age[:, None]},
        final_at=np.empty(0, np.int64),
        final_obs=np.empty((0, 84, 84), np.uint8),
        start_at=start_at,
        starts={name: spec.zeros(len(start_at)) for name, spec in states.items()},
    )


def _gather(name: str, window: Window, states: Mapping[str, ArraySpec], windows: int, seconds: float) -> Figure:
    rows = ROWS if seconds >= 1.0 else 8 * STEPS
    shard = _full_shard(window, states, rows)
    served, bare = rates([_answering(shard, windows), _copying(window, windows, rows)], seconds)
    return Figure(
        name=name,
        value=served,
        unit="windows/s",
        limit=bare,
        limit_name="np.take of the same frames",
        settings={"rows": rows, "windows": windows, "frames": _frames(window), "burn_in": window.burn_in},
    )


def _full_shard(window: Window, states: Mapping[str, ArraySpec], rows: int) -> ReplayShard:
    config = ReplayConfig(capacity=rows, min_windows=1)
    shard = ReplayShard(config, PONG, window, {}, np.random.default_rng(0), no_clock, starts=states)
    unrolls: Iterator[Unroll] = endless(_grown(game(UNROLLS, states, window.period), rows))
    while shard.rows[1] < rows:
        shard.insert(next(unrolls))
    return shard


def _grown(unrolls: Sequence[Unroll], rows: int) -> list[Unroll]:
    """Return enough unrolls of one long episode, the frames of the first ones over and over."""
    grown = []
    for index, unroll in zip(range(-(-rows // STEPS)), cycle(unrolls), strict=False):
        age = index * STEPS + np.arange(STEPS)[:, None]
        grown.append(replace(unroll, columns=unroll.columns | {"age": age}))
    return grown


def _answering(shard: ReplayShard, windows: int) -> Work:
    answers, nothing = wire.Answers(), np.empty(0, np.int64)
    request = SampleRequest(counts=[windows], keys=nothing, priorities=np.empty(0), insert_limit=1 << 60)
    packed = wire.encode_request(request)

    def work() -> int:
        answers.pack(shard.sample, packed)
        return windows

    return work


def _copying(window: Window, windows: int, rows: int) -> Work:
    rng, frames = np.random.default_rng(0), np.ones((rows, 84, 84), np.uint8)
    count = _frames(window)
    begins = [rng.integers(0, rows - count, windows) + np.arange(count)[:, None] for _ in range(REQUESTS)]
    out = np.empty((count, windows, 84, 84), np.uint8)
    indices = cycle(begins)

    def work() -> int:
        np.take(frames, next(indices), axis=0, out=out, mode="clip")
        return windows

    return work


def _frames(window: Window) -> int:
    return window.stack + window.length
