"""The parameter server behind Ray: what a fetch costs an actor, and how many gradients its slices take."""

import time
from functools import partial
from typing import Any

import numpy as np
import ray

from cluster.bench import gradients
from cluster.bench.figure import Figure, Work, rates
from cluster.bench.on_ray import idle, round_trip, started_ray
from cluster.config import ReplayRun
from cluster.processes import ParamProcess
from cluster.roles import build_param_server
from starling import wire
from starling.params import Layout, Params

SIZE = 1_700_000  # the Nature CNN's; smaller networks travel in the answer itself
VERSION = 1


def measure(config: ReplayRun[Any], preset: str, seconds: float) -> list[Figure]:
    """Return the milliseconds of both fetches, and the pushes per second of two sizes."""
    params = Params(Layout((("weights", (SIZE,)),)), np.ones(SIZE, np.float32))
    with started_ray():
        process: Any = ray.remote(ParamProcess)
        server = process.options(num_cpus=0.1).remote(partial(build_param_server, time.monotonic))
        ray.get(server.publish.remote(VERSION, wire.encode_params(params)))
        works = [_fetching(server), _copying(params), _asking(server), round_trip(idle())]
        fetch, copy, ask, no_op = (1e3 / rate for rate in rates(works, seconds))
        pushes = gradients.measure(seconds)
    settings = {"parameters": SIZE, "megabytes": round(params.buffer.nbytes / 1e6, 1)}
    return [
        Figure(
            name="params.fetch_ms",
            value=fetch,
            unit="ms",
            limit=no_op + copy,
            limit_name="an idle Ray call, a memory copy",
            better="lower",
            settings=settings,
        ),
        Figure(
            name="params.fetch_nothing_newer_ms",
            value=ask,
            unit="ms",
            limit=no_op,
            limit_name="an idle Ray call",
            better="lower",
            settings=settings,
        ),
        *pushes,
    ]


def _fetching(server: Any) -> Work:
    def work() -> int:
        _, packed = ray.get(server.fetch.remote(0))
        if isinstance(packed, list):
            packed = ray.get(packed[0])
        wire.decode_params(packed).copy()  # an actor keeps them in memory of its own
        return 1

    return work


def _asking(server: Any) -> Work:
    def work() -> int:
        assert ray.get(server.fetch.remote(VERSION)) is None
        return 1

    return work


def _copying(params: Params) -> Work:
    def work() -> int:
        params.copy()
        return 1

    return work
