"""Real runs of the queue and lockstep topologies: they learn, and go on when an actor, the learner or both die."""

from pathlib import Path

import pytest

from tests.clusters import NEVER, TrainingRun, alive, kill, versions_only_grow
from tests.whole_unrolls import PRESETS

pytestmark = pytest.mark.cluster

OFTEN = ("--checkpoint.every", "100", "--evaluator.episodes", "10", "--evaluator.copies", "10")
TWO = ("--actor.num", "2", "--env.copies", "8")


@pytest.mark.parametrize("topology", list(PRESETS))
def test_a_run_goes_on_whoever_dies(topology: str, tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER, *OFTEN, *TWO, preset=PRESETS[topology]) as run:
        run.until(lambda: run.updates() > 20, "the first updates")
        marks = run.marks()
        for roles in (["actor[1]"], ["actor[0]", "learner[0]"]):
            before = run.updates()
            for pid in [run.pid(role) for role in roles]:
                kill(pid)
            run.until(lambda roles=roles: _recovered(run) >= set(roles), f"{roles} recovered")
            run.until(lambda before=before: run.updates() > before + 50, f"updates after {roles} died")
        run.until(lambda: "began_at" in run.roles()["learner[0]"].get("gauges", {}), "what the dead learner knew")
        evaluations = len(run.events("evaluation"))
        run.until(lambda: len(run.events("evaluation")) > evaluations, "an evaluation after all of them")
        run.until(lambda: _best(run) >= 100.0, "something learned")

        run.interrupt()

        assert run.end() == 130
        assert {event["role"] for event in run.deaths()} == {"actor[0]", "actor[1]", "learner[0]"}
        assert alive(marks) == []
        if topology == "queue":  # lockstep is resumed by the same code, bit for bit in test_unroll_runs
            _goes_on(run, tmp_path)
        versions_only_grow(run)


def _goes_on(run: TrainingRun, folder: Path) -> None:
    stood = run.checkpoints()[-1]
    with TrainingRun(folder, "--if-exists", "resume", *NEVER, *OFTEN, *TWO, preset=PRESETS["queue"]) as again:
        again.until(lambda: again.updates() > stood["updates"] + 50, "updates after the seam")
        again.interrupt()
        assert again.end() == 130
    assert again.events("resumed")[0]["updates"] == stood["updates"]


def _best(run: TrainingRun) -> float:
    return max(event["mean"] for event in run.events("evaluation"))


def _recovered(run: TrainingRun) -> set[str]:
    return {event["role"] for event in run.events("recovered")}
