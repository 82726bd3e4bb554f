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
from cluster.bench.learner import bare_updates, sampled_batches
from cluster.bench.neighbours import fresh_params
from cluster.config import ReplayRun, dump
from cluster.provenance import cores
from cluster.ray_node import RayNode
from cluster.user_folder import own_module
from starling.errors import RoleError

STOP_LIMIT_S = 12.0
BARE_START = "import os, torch, ray; ray.init(address='local', include_dashboard=False, _temp_dir=os.environ['FOLDER'])"


class Sample(NamedTuple):
    """The run's two clocks at one moment of its training."""

    elapsed_s: float
    env_steps: int
    updates: int


def measure(config: ReplayRun[Any], preset: str, seconds: float) -> list[Figure]:
    """Return both clocks of a run that nothing ends but the time, and how long it took to begin."""
    before = bare_rates(config, seconds / 4)
    start_s, samples = train(config, seconds)
    limits = [median(pair) for pair in zip(before, bare_rates(config, seconds / 4), strict=True)]
    env_steps, updates = allowed(config, *limits)
    name, measured = f"train.{preset}", speeds(samples)
    settings = {
        "actors": config.actor.num,
        "copies": config.env.copies,
        "shards": config.replay.shards,
        "batch_size": config.learner.batch_size,
        "samples_per_insert": config.replay.samples_per_insert,
        "cores": cores(),
    }
    slower: dict[str, Any] = {"limit_name": "slower of bare actor, bare learner", "settings": settings}
    return [
        Figure(name=f"{name}.env_steps_per_s", value=measured[0], unit="env_steps/s", limit=env_steps, **slower),
        Figure(name=f"{name}.updates_per_s", value=measured[1], unit="updates/s", limit=updates, **slower),
        Figure(
            name="start.seconds",
            value=start_s,
            unit="s",
            limit=bare_start(),
            limit_name="import torch and ray.init",
            better="lower",
            settings={"until": "the first environment step is known", "actors": config.actor.num},
        ),
    ]


def bare_rates(config: ReplayRun[Any], seconds: float) -> tuple[float, float]:
    """Return the steps per second of a bare actor and the updates per second of a bare learner."""
    spec = measure_spec(config.env)
    works = [
        bare_loop(config, spec, fresh_params(config, spec)),
        bare_updates(config, spec, sampled_batches(config, spec)),
    ]
    steps, updates = rates(works, seconds)
    return steps, updates


def allowed(config: ReplayRun[Any], actor: float, learner: float) -> tuple[float, float]:
    """Return the env steps and updates per second of one core for the learner and the others for actors."""
    actors = actor * max(1, min(config.actor.num, cores() - 1))
    ratio = config.replay.samples_per_insert / config.learner.batch_size  # updates per step
    if not ratio:
        return actors, learner
    env_steps = min(actors, learner / ratio)
    return env_steps, env_steps * ratio


def train(config: ReplayRun[Any], seconds: float) -> tuple[float, list[Sample]]:
    """Train for a while, and return the seconds from the command to the first step, and the samples."""
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
    return start_s, samples


def speeds(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the env steps and updates per second, medians between samples; the first ones fill the replay."""
    pairs = [(a, b) for a, b in pairwise([Sample(0.0, 0, 0), *samples]) if b.elapsed_s > a.elapsed_s]
    seen = [
        (
            (b.env_steps - a.env_steps) / (b.elapsed_s - a.elapsed_s),
            (b.updates - a.updates) / (b.elapsed_s - a.elapsed_s),
        )
        for a, b in pairs[2:-1] or pairs
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
