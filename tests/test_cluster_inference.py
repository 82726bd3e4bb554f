"""Real runs whose actors have no networks: each topology learns, and the loss of who acts or plays is survived."""

from pathlib import Path

import pytest

from tests.clusters import NEVER, TrainingRun, alive, kill

pytestmark = pytest.mark.cluster

CENTRAL = ("--inference.placement", "central", "--seed", "1")
QUICKLY = ("--evaluator.episodes", "10", "--evaluator.copies", "10", "--evaluator.every", "5")
KILLED = ["inference[0]", "actor[1]", "inference[0]"]
LEARNED = 45.0  # an untrained policy gets 9 to 25


@pytest.mark.parametrize("preset", ["cartpole", "cartpole-impala"])  # A2C below
def test_a_run_of_each_topology_learns_from_what_others_acted(preset: str, tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *CENTRAL, *QUICKLY, "--goal.return-mean", str(LEARNED), preset=preset) as run:
        run.until(lambda: bool(run.events("began")), "the first step")
        marks = run.marks()

        code = run.end()

        assert code == 0, run.stderr.read_text()
        assert run.roles()["inference[0]"]["counts"]["copies"] > 0
        assert run.deaths() == []
        assert alive(marks) == []


def test_a_run_goes_on_when_who_acts_for_actors_dies_and_when_they_do(tmp_path: Path) -> None:
    remembering = ("--algorithm.memory", "8")  # so that something is lost
    with TrainingRun(tmp_path, *CENTRAL, *NEVER, *QUICKLY, *remembering, preset="cartpole-a2c") as run:
        run.until(lambda: run.updates() > 5, "the first updates")
        for role in KILLED:
            before, times = run.updates(), _recovered(run).count(role)
            kill(run.pid(role))
            run.until(lambda role=role, times=times: _recovered(run).count(role) > times, f"{role} recovered")
            run.until(lambda before=before: run.updates() > before + 5, f"updates after {role} died")

        run.interrupt()
        assert run.end() == 130
        assert [event["role"] for event in run.deaths()] == KILLED
        lost = sum(run.roles()[f"actor[{index}]"]["counts"].get("streams_lost", 0) for index in range(2))
        assert lost > 0
        assert all(event["seconds"] < 30.0 for event in run.events("recovered"))
        print([(event["role"], event["seconds"]) for event in run.events("recovered")])


def _recovered(run: TrainingRun) -> list[str]:
    return [event["role"] for event in run.events("recovered")]
