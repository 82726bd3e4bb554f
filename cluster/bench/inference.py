"""Central inference through Ray: how fast one actor plays without networks, beside networks of its own."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import ray

from actors.envs import measure_spec
from actors.inference_config import InferenceConfig
from actors.worker import Actor
from cluster.bench.figure import Figure
from cluster.bench.neighbours import PackingSink, fresh_params
from cluster.bench.on_ray import calls_per_s, started_ray
from cluster.config import QueueRun, ReplayRun
from cluster.handles import Peer
from cluster.inference_process import InferenceProcess
from cluster.players import build_actor, build_inference
from cluster.processes import LoopProcess, ParamProcess
from cluster.roles import build_param_server
from starling import wire
from starling.metrics import Clock
from starling.questions import ActionSource
from starling.spec import Spec
from starling.types import ParamSource

READY_LIMIT_S = 60.0
WINDOWS = 4
POLL_S = 0.003


def measure(config: ReplayRun[Any] | QueueRun[Any], preset: str, seconds: float) -> list[Figure]:
    """Return the steps and the answers per second of one actor that never waits for its sink."""
    actor, inference = replace(config.actor, fetch_every=0), replace(config.inference, placement="central")
    central = replace(config, actor=actor, inference=inference)
    spec = measure_spec(config.env)
    with started_ray():
        params = _remote(ParamProcess).remote(partial(build_param_server, time.monotonic))
        ray.get(params.publish.remote(1, wire.encode_params(fresh_params(config, spec)), 0))
        server = Peer("param_server[0]", params, 0)
        act = partial(build_inference, central, spec, 0, time.monotonic)
        role = _remote(InferenceProcess).remote("inference[0]", act, 0, {"params": [server]})
        acting = Peer("inference[0]", role, 0)
        flows = [
            _actor(central, spec, {"inference": [acting]}),
            _actor(replace(config, inference=InferenceConfig()), spec, {"params": [server]}),
        ]
        steps, alone = (_steps_per_s(flow, seconds / 3) for flow in flows)
        calls = calls_per_s(seconds / 3)
    groups = central.inference.groups
    settings = {
        "env": config.env.id,
        "copies": config.env.copies,
        "groups": groups,
        "unroll_length": config.actor.unroll_length,
    }
    return [
        Figure(
            name=f"inference.steps_per_s.{preset}",
            value=steps,
            unit="env_steps/s",
            limit=alone,
            limit_name="networks of its own",
            settings=settings,
        ),
        Figure(
            name=f"inference.answers_per_s.{preset}",
            value=steps * groups / config.env.copies,
            unit="answers/s",
            limit=calls,
            limit_name="calls that do nothing",
            settings=settings,
        ),
    ]


def play(
    config: ReplayRun[Any] | QueueRun[Any],
    spec: Spec,
    clock: Clock,
    generation: int,
    params: ParamSource | None = None,
    inference: ActionSource | None = None,
) -> Actor:
    """Return an actor whose unrolls are packed and forgotten."""
    return build_actor(config, spec, 0, clock, PackingSink(), params, inference, generation)


def _actor(config: ReplayRun[Any] | QueueRun[Any], spec: Spec, peers: Mapping[str, list[Peer]]) -> Any:
    return partial(_remote(LoopProcess).remote, "actor[0]", partial(play, config, spec, time.monotonic), 0, peers)


def _steps_per_s(start: Any, seconds: float) -> float:
    """Return how many steps an actor plays per second: the median of short windows."""
    actor = start()
    deadline = time.monotonic() + READY_LIMIT_S
    while not _played(actor):
        assert time.monotonic() < deadline, f"nothing was played: {ray.get(actor.beat.remote())}"
        time.sleep(0.1)
    marks = [_next_unroll(actor)]
    for _ in range(WINDOWS):
        time.sleep(seconds / WINDOWS)
        marks.append(_next_unroll(actor))
    seen = [(done - before) / (then - began) for (began, before), (then, done) in pairwise(marks)]
    ray.kill(actor)
    return median(seen)


def _next_unroll(actor: Any) -> tuple[float, int]:
    """Return when the next unroll was finished, and the steps until then: none are counted in between."""
    before = _played(actor)
    while (played := _played(actor)) == before:
        time.sleep(POLL_S)
    return time.monotonic(), played


def _played(actor: Any) -> int:
    beat = ray.get(actor.beat.remote())
    assert not beat.error, beat.error
    played: int = beat.stats.get("counts", {}).get("env_steps", 0)
    return played


def _remote(process: type) -> Any:
    return ray.remote(process).options(num_cpus=0.1)
