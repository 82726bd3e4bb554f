"""The process dies at each durable step: what is on the disk stays whole, and the run goes on."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from cluster.checkpoints import load_to_resume
from cluster.cli import main
from starling.errors import ConfigError
from starling.failpoints import DIED, NAMES, VARIABLE, arm, reach

SETTINGS = [
    *("--runtime", "local", "--total-steps", "700", "--goal.return-mean", "none", "--quiet"),
    *("--checkpoint.every", "10", "--checkpoint.keep", "1", "--evaluator.every", "4", "--evaluator.episodes", "2"),
    *("--replay.capacity", "500", "--algorithm.hidden", "8"),
]
FORKED = multiprocessing.get_context("fork")  # torch is loaded already: two seconds for each process saved


def train(*args: str, failpoint: str = "") -> int:
    """Run the command in a process of its own, and return its exit code."""
    process = FORKED.Process(target=_train, args=(args, failpoint))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _train(args: list[str], failpoint: str) -> None:
    os.environ[VARIABLE] = failpoint
    os._exit(main(["train", *args]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the parameters with which the run ends that nothing happens to."""
    import cluster.local  # noqa: F401 (loads torch before the fork)

    runs = tmp_path_factory.mktemp("runs")
    assert train("gridworld", "--run", "whole", "--runs", str(runs), *SETTINGS) == 0
    return ended_with(runs / "whole")


def ended_with(run: Path) -> str:
    last = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "ended"
    return str(last["params_sha256"])


DURABLE = [name for name in NAMES if name.startswith("checkpoint.")]


@pytest.mark.parametrize(
    ("name", "nth"),
    [*((name, 2) for name in DURABLE), ("checkpoint.before_files", 1), ("checkpoint.before_pointer", 1)],
)
def test_a_run_that_dies_at_a_durable_step_goes_on_to_the_same_end(
    name: str, nth: int, whole: str, tmp_path: Path
) -> None:
    runs = ("--runs", str(tmp_path))
    assert train("gridworld", "--run", "a", *runs, *SETTINGS, failpoint=f"{name}:{nth}") == DIED
    checkpoints = tmp_path / "a" / "checkpoints"
    kept = (checkpoints / "LATEST").exists()
    if kept:
        assert load_to_resume(checkpoints).states

    again = (
        ("--resume", "a", *runs, "--quiet")
        if kept
        else ("gridworld", "--run", "a", "--if-exists", "new", *runs, *SETTINGS)
    )

    assert train(*again) == 0
    assert ended_with(tmp_path / ("a" if kept else "a-01")) == whole
    assert not kept or not list(checkpoints.glob(".*"))


@pytest.mark.parametrize("name", ["run.before_config", "run.before_env"])
def test_a_run_that_dies_while_it_is_made_is_no_run(name: str, tmp_path: Path) -> None:
    assert train("gridworld", "--run", "a", "--runs", str(tmp_path), *SETTINGS, failpoint=f"{name}:1") == DIED

    assert train("--resume", "a", "--runs", str(tmp_path), "--quiet") == 2


def test_a_run_that_dies_while_it_is_resumed_can_be_resumed(whole: str, tmp_path: Path) -> None:
    runs = ("--runs", str(tmp_path))
    assert train("gridworld", "--run", "a", *runs, *SETTINGS, failpoint="checkpoint.before_files:4") == DIED

    assert train("--resume", "a", *runs, "--quiet", failpoint="run.before_new_config:1") == DIED
    assert train("--resume", "a", *runs, "--quiet") == 0

    assert ended_with(tmp_path / "a") == whole


def test_every_failpoint_is_reached_by_these_tests() -> None:
    others = {name for name in NAMES if not name.startswith("replay.")}  # those are in test_journal.py
    assert others - set(DURABLE) == {"run.before_config", "run.before_env", "run.before_new_config"}


@pytest.mark.parametrize(
    "setting", ["nowhere:1", "checkpoint.before_rename", "checkpoint.before_rename:0", ":", "x" * 999]
)
def test_a_failpoint_that_does_not_exist_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"^STARLING_FAILPOINT must be NAME:NTH with one of run\.before_config, "):
        arm(setting)


def test_without_a_failpoint_nothing_happens() -> None:
    for name in NAMES:
        reach(name)
