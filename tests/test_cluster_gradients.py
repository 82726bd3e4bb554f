"""Real runs of the gradients topology: they learn, survive the loss of a worker and of a slice, and are resumed."""

from pathlib import Path

import pytest

from cluster.config import load
from cluster.roles import VERSION_GAP
from tests.clusters import TrainingRun, alive, kill

pytestmark = pytest.mark.cluster

NEVER = ("--goal.return-mean", "1000")  # more than CartPole gives
SLICES = ("--params.slices", "2", "--checkpoint.every", "200", "--evaluator.episodes", "10", "--evaluator.copies", "10")


def test_a_run_solves_cartpole_and_leaves_no_process(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, "--seed", "1", preset="cartpole-a3c") as run:
        run.until(lambda: bool(run.events("began")), "the first step")
        marks = run.marks()

        code = run.end()

        assert code == 0, run.stderr.read_text()
        assert run.events("ended")[0]["best_mean"] >= 475.0
        assert set(run.roles()) == {"actor[0]", "actor[1]", "param_server[0]", "evaluator[0]"}
        assert alive(marks) == []


def test_a_run_goes_on_when_workers_and_slices_die(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER, *SLICES, preset="cartpole-a3c") as run:
        run.until(lambda: run.updates() > 50, "the first gradients")
        for role in ("actor[1]", "param_server[1]", "evaluator[0]", "param_server[0]"):
            before = run.updates()
            kill(run.pid(role))
            run.until(lambda role=role: _recovered(run, role), f"{role} recovered")
            run.until(lambda before=before: run.updates() > before + 100, f"gradients after {role} died")

        versions = [event["version"] for event in run.events("evaluation")]
        checkpoints = [event["version"] for event in run.events("checkpoint") if event["number"]]
        run.until(lambda: len(run.events("evaluation")) > len(versions), "an evaluation of the successors")
        after = run.events("evaluation")[-1]["version"]
        run.interrupt()
        assert run.end() == 130
        assert [event["why"] for event in run.events("lost")] == ["died"] * 4
        assert versions == sorted(versions)
        assert checkpoints == sorted(checkpoints)
        assert after > VERSION_GAP  # both slices have had a successor
        assert load(str(run.path / "config.toml")).params.slices == 2


def test_a_run_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER, *SLICES, preset="cartpole-a3c") as run:
        run.until(lambda: run.updates() > 250, "gradients")
        run.interrupt()
        assert run.end() == 130
    stood = run.events("checkpoint")[-1]

    with TrainingRun(tmp_path, "--if-exists", "resume", *NEVER, *SLICES, preset="cartpole-a3c") as again:
        again.until(lambda: again.updates() > stood["updates"] + 100, "gradients after the seam")
        again.interrupt()
        assert again.end() == 130

    assert again.events("resumed")[0]["updates"] == stood["updates"]
    versions = [event["version"] for event in again.events("evaluation")]
    assert versions == sorted(versions)


def _recovered(run: TrainingRun, role: str) -> bool:
    return any(event["role"] == role for event in run.events("recovered"))
