"""Real runs of the gradients topology: they learn, survive the loss of a worker and of a slice, and are resumed."""

from pathlib import Path

import pytest

from cluster.config import load
from cluster.roles import VERSION_GAP
from tests.clusters import NEVER, TrainingRun, alive, kill, versions_only_grow

pytestmark = pytest.mark.cluster

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


def test_a_run_goes_on_when_workers_and_slices_die_and_when_it_was_interrupted(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER, *SLICES, preset="cartpole-a3c") as run:
        run.until(lambda: run.updates() > 50, "the first gradients")
        for role in ("actor[1]", "param_server[1]", "evaluator[0]", "param_server[0]"):
            before = run.updates()
            kill(run.pid(role))
            run.until(lambda role=role: _recovered(run, role), f"{role} recovered")
            run.until(lambda before=before: run.updates() > before + 100, f"gradients after {role} died")
        evaluations = len(run.events("evaluation"))
        run.until(lambda: len(run.events("evaluation")) > evaluations, "an evaluation of the successors")
        run.interrupt()
        assert run.end() == 130

        assert [event["why"] for event in run.events("lost")] == ["died"] * 4
        assert run.events("evaluation")[-1]["version"] > VERSION_GAP  # both slices have had a successor
        assert load(str(run.path / "config.toml")).params.slices == 2
    stood = run.events("checkpoint")[-1]

    with TrainingRun(tmp_path, "--if-exists", "resume", *NEVER, *SLICES, preset="cartpole-a3c") as again:
        again.until(lambda: again.updates() > stood["updates"] + 100, "gradients after the seam")
        again.interrupt()
        assert again.end() == 130

    assert again.events("resumed")[0]["updates"] == stood["updates"]
    versions_only_grow(again)


def _recovered(run: TrainingRun, role: str) -> bool:
    return any(event["role"] == role for event in run.events("recovered"))
