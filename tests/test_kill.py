"""kill -9 at random moments: `STARLING_KILLS=20 pytest tests/test_kill.py` for as many as you like."""

import json
import os
import random
import shutil
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


def killed(run: Path, after_s: float) -> bool:
    """Begin a run and kill it some time after its first checkpoint; False if it was quicker than that."""
    process = train("gridworld", "--run", run.name, "--runs", str(run.parent), *SETTINGS)
    while not (run / "checkpoints" / "LATEST").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    assert code in (0, -signal.SIGKILL), process.stderr and process.stderr.read()
    return code != 0


@pytest.mark.cluster
def test_a_run_that_is_killed_anywhere_ends_as_if_it_never_was(tmp_path: Path) -> None:
    rng = random.Random(4)
    assert train("gridworld", "--run", "whole", "--runs", str(tmp_path), *SETTINGS).wait() == 0
    whole = outcome(tmp_path / "whole")

    ends = []
    for kill in range(KILLS):
        run = tmp_path / f"killed-{kill}"
        while not killed(run, rng.uniform(0.0, 0.6 * whole["train_s"])):
            shutil.rmtree(run)
        again = train("--resume", run.name, "--runs", str(tmp_path), "--quiet")
        assert again.wait() == 0, again.stderr and again.stderr.read()
        ends.append(outcome(run))
        (resumed,) = [event for event in events(run) if event["event"] == "resumed"]
        print(f"kill {kill}: resumed at {resumed['checkpoint']}, {ends[-1]['params_sha256'][:16]}")

    same = ("params_sha256", "env_steps", "updates", "best_mean")
    assert [[end[name] for name in same] for end in ends] == [[whole[name] for name in same]] * KILLS
