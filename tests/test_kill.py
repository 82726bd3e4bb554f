"""kill -9 at random moments: `STARLING_KILLS=20 pytest tests/test_kill.py` for as many as you like."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("STARLING_KILLS", "3"))
STARLING = [sys.executable, "-c", "import sys; from cluster.cli import main; sys.exit(main())"]
SETTINGS = [
    *("--runtime", "local", "--total-steps", "6000", "--goal.return-mean", "none"),
    *("--checkpoint.every", "40", "--evaluator.every", "20", "--quiet"),
]


def train(*args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*STARLING, "train", *args], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def events(run: Path) -> Iterator[dict[str, Any]]:
    path = run / "events.jsonl"
    yield from map(json.loads, path.read_text().rpartition("\n")[0].splitlines() if path.exists() else [])


def outcome(run: Path) -> dict[str, Any]:
    (*_, last) = events(run)
    assert last["event"] == "ended"
    return last


@pytest.mark.cluster
def test_a_run_that_is_killed_anywhere_ends_as_if_it_never_was(tmp_path: Path) -> None:
    rng = random.Random(4)
    assert train("gridworld", "--run", "whole", "--runs", str(tmp_path), *SETTINGS).wait() == 0
    whole = outcome(tmp_path / "whole")

    ends = []
    for kill in range(KILLS):
        run = tmp_path / f"killed-{kill}"
        process = train("gridworld", "--run", run.name, "--runs", str(tmp_path), *SETTINGS)
        while not (run / "checkpoints" / "LATEST").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6 * whole["train_s"]))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        again = train("--resume", run.name, "--runs", str(tmp_path), "--quiet")
        assert again.wait() == 0, again.stderr and again.stderr.read()
        ends.append(outcome(run))
        (resumed,) = [event for event in events(run) if event["event"] == "resumed"]
        print(f"kill {kill}: resumed at {resumed['checkpoint']}, {ends[-1]['params_sha256'][:16]}")

    same = ("params_sha256", "env_steps", "updates", "best_mean")
    assert [[end[name] for name in same] for end in ends] == [[whole[name] for name in same]] * KILLS


@pytest.mark.cluster
def test_a_ray_run_goes_on_with_its_counts_its_ratio_and_its_versions(tmp_path: Path) -> None:
    settings = ["--goal.return-mean", "none", "--checkpoint.every", "100", "--evaluator.episodes", "5", "--quiet"]
    begun = train("cartpole", "--run", "a", "--runs", str(tmp_path), "--total-steps", "20000", *settings)
    assert begun.wait() == 0, begun.stderr and begun.stderr.read()
    run = tmp_path / "a"
    first = outcome(run)

    again = train("--resume", "a", "--runs", str(tmp_path), "--total-steps", "60000", "--actor.num", "3", "--quiet")
    assert again.wait() == 0, again.stderr and again.stderr.read()

    second = outcome(run)
    kept = [event for event in events(run) if event["event"] == "checkpoint" and event["number"]]
    samples = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert second["updates"] > first["updates"] > 0
    assert second["env_steps"] >= 60_000
    for clocks in (kept, samples):
        steps = [row["env_steps"] for row in clocks]
        assert steps == sorted(steps)
    versions = [event["version"] for event in kept]
    assert versions == sorted(versions)  # the last checkpoint may be of the same version as the one before
    (seam,) = [n for n, event in enumerate(events(run)) if event["event"] == "resumed"]
    shards = [role for name, role in samples[-1]["roles"].items() if name.startswith("replay_server")]
    assert sum(shard["gauges"]["rows"] for shard in shards) > 10_000
    assert seam > 0
    assert 1.5 < samples[-1]["figures"]["samples_per_insert"] < 2.5
