"""A real `starling train`, beside what its actors and its learner could do if nothing lay between them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from actors.envs import measure_spec
from cluster.bench.actors import bare_loop
from cluster.bench.figure import Figure, rates
from cluster.bench.learner import Learning, bare_updates, ready_for
from cluster.bench.neighbours import fresh_params
from cluster.config import LockstepRun, QueueRun, ReplayRun, dump
from cluster.provenance import cores
from cluster.ray_node import RayNode
from cluster.roles import steps_per_update
from cluster.run_folder import Run
from cluster.user_folder import own_module
from starling.errors import RoleError
from starling.metrics import quantile

STOP_LIMIT_S = 12.0
BARE_START = "import os, torch, ray; ray.init(address='local', include_dashboard=False, _temp_dir=os.environ['FOLDER'])"


class Trained(NamedTuple):
    """What a run showed of itself."""

    start_s: float  # from the command to the first step
    samples: Sequence["Sample"]
    lag: Sequence[int]  # histogram of what was learned from


class Sample(NamedTuple):
    """The run's two clocks at one moment of its training."""

    elapsed_s: float
    env_steps: int
    updates: int


def measure(config: Learning, preset: str, seconds: float) -> list[Figure]:
    """Return both clocks of a run that nothing ends but the time, and how long it took to begin."""
    before = bare_rates(config, seconds / 4)
    trained = train(config, seconds)
    limits = [median(pair) for pair in zip(before, bare_rates(config, seconds / 4), strict=True)]
    env_steps, updates = allowed(config, *limits)
    name, measured = f"train.{preset}", speeds(trained.samples)
    settings = {
        "actors": config.actor.num,
        "copies": config.env.copies,
        "unroll_length": config.actor.unroll_length,
        **_settings(config),
        "cores": cores(),
        "lag_p50": quantile(trained.lag, 0.5),
        "lag_p95": quantile(trained.lag, 0.95),
    }
    slower: dict[str, Any] = {"limit_name": "bare actor and bare learner", "settings": settings}
    return [
        Figure(name=f"{name}.env_steps_per_s", value=measured[0], unit="env_steps/s", limit=env_steps, **slower),
        Figure(name=f"{name}.updates_per_s", value=measured[1], unit="updates/s", limit=updates, **slower),
        Figure(
            name="start.seconds",
            value=trained.start_s,
            unit="s",
            limit=bare_start(),
            limit_name="import torch and ray.init",
            better="lower",
            settings={"until": "the first environment step is known", "actors": config.actor.num},
        ),
    ]


def bare_rates(config: Learning, seconds: float) -> tuple[float, float]:
    """Return the steps per second of a bare actor and the updates per second of a bare learner."""
    spec = measure_spec(config.env)
    works = [
        bare_loop(config, spec, fresh_params(config, spec)),
        bare_updates(config, spec, ready_for(config, spec).batches),
    ]
    steps, updates = rates(works, seconds)
    return steps, updates


def _settings(config: Learning) -> dict[str, Any]:
    match config:
        case ReplayRun(replay=replay, learner=learner):
            own = {"shards": replay.shards, "batch_size": learner.batch_size}
            return {**own, "samples_per_insert": replay.samples_per_insert}
        case QueueRun(queue=queue, learner=learner):
            return {"unrolls": learner.unrolls, "capacity": queue.capacity, "uses": queue.uses}
    return {}


def allowed(config: Learning, actor: float, learner: float) -> tuple[float, float]:
    """Return the env steps and updates per second that actors and learner allow if nothing lay between them.

    One core is the learner's and the others are the actors'; in lockstep nobody works while others do, so the actors
    have all of them.
    """
    if isinstance(config, LockstepRun):
        steps = steps_per_update(config)
        updates = 1.0 / (steps / (actor * min(config.actor.num, cores())) + 1.0 / learner)
        return updates * steps, updates
    actors = actor * max(1, min(config.actor.num, cores() - 1))
    if isinstance(config, ReplayRun):
        ratio = config.replay.samples_per_insert / config.learner.batch_size  # updates per step
    else:
        ratio = config.queue.uses / steps_per_update(config)
    if not ratio:
        return actors, learner
    env_steps = min(actors, learner / ratio)
    return env_steps, env_steps * ratio


def train(config: Learning, seconds: float) -> Trained:
    """Train for a while through Ray."""
    endless = replace(config.goal, return_mean=None, total_steps=1 << 60, max_minutes=seconds / 60.0)
    with tempfile.TemporaryDirectory(prefix="starling-bench-") as folder:
        file, log = Path(folder) / "bench.toml", Path(folder) / "log"
        file.write_text(dump(replace(config, goal=endless, runtime="ray")), "utf-8")
        command = own_module("cluster.cli", "train", str(file), "--runs", folder, "--run", "bench")
        began, start_s, samples = time.monotonic(), 0.0, []
        with (
            log.open("wb") as errors,
            subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            assert process.stdout is not None
            try:
                for row in map(json.loads, process.stdout):
                    if row["event"] == "sample" and row["env_steps"]:
                        start_s = start_s or time.monotonic() - began - row["elapsed_s"]
                        samples.append(Sample(row["elapsed_s"], row["env_steps"], row["updates"]))
            finally:
                process.wait(timeout=STOP_LIMIT_S)  # at Ctrl-C it takes its roles with it
        if not samples:
            raise RoleError(f"starling train made no step: {log.read_text('utf-8', 'replace').strip()}")
        roles = Run(Path(folder) / "bench").last("metrics.jsonl").get("roles", {})
    return Trained(start_s, samples, roles.get("learner[0]", {}).get("histograms", {}).get("lag", [0]))


def speeds(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the env steps and updates per second, medians between samples; the first ones fill the replay.

    Of a run that is too short for that, the means of all of it.
    """
    begun = Sample(0.0, 0, 0)
    pairs = [(a, b) for a, b in pairwise([begun, *samples]) if b.elapsed_s > a.elapsed_s]
    seen = [
        (
            (b.env_steps - a.env_steps) / (b.elapsed_s - a.elapsed_s),
            (b.updates - a.updates) / (b.elapsed_s - a.elapsed_s),
        )
        for a, b in pairs[2:-1] or [(begun, samples[-1])]
    ]
    return median(env_steps for env_steps, _ in seen), median(updates for _, updates in seen)


def bare_start() -> float:
    """Return the seconds in which a process imports torch and starts a Ray of its own."""
    node = RayNode.prepare()
    try:
        began = time.monotonic()
        environment = {**node.environment(os.environ), "FOLDER": str(node.folder)}
        subprocess.run([sys.executable, "-P", "-c", BARE_START], env=environment, check=True, capture_output=True)
        return time.monotonic() - began
    finally:
        node.kill()
        node.remove()
