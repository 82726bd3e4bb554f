"""Real runs of the gradients topology: they learn, survive the loss of a worker and of a slice, and are resumed."""

from pathlib import Path

import pytest

from cluster.config import load
from cluster.roles import VERSION_GAP
from tests.clusters import NEVER, TrainingRun, alive, kill, versions_only_grow

pytestmark = pytest.mark.cluster

KILLED = ["actor[1]", "param_server[1]", "evaluator[0]", "param_server[0]"]
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
        for role in KILLED:
            before = run.updates()
            kill(run.pid(role))
            run.until(lambda role=role: _recovered(run, role), f"{role} recovered")
            run.until(lambda before=before: run.updates() > before + 100, f"gradients after {role} died")
        run.until(lambda: _newest_judged(run) > VERSION_GAP, "an evaluation of the successors of both slices")
        run.interrupt()
        assert run.end() == 130

        assert [event["role"] for event in run.deaths()] == KILLED
        assert load(str(run.path / "config.toml")).params.slices == 2
    stood = run.checkpoints()[-1]

    with TrainingRun(tmp_path, "--if-exists", "resume", *NEVER, *SLICES, preset="cartpole-a3c") as again:
        again.until(lambda: again.updates() > stood["updates"] + 100, "gradients after the seam")
        again.interrupt()
        assert again.end() == 130

    assert again.events("resumed")[0]["updates"] == stood["updates"]
    versions_only_grow(again)


def _newest_judged(run: TrainingRun) -> int:
    return max((event["version"] for event in run.events("evaluation")), default=0)


def _recovered(run: TrainingRun, role: str) -> bool:
    return any(event["role"] == role for event in run.events("recovered"))
