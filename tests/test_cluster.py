"""Real runs of the ray runtime: they learn, survive the loss of any role, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.ray_node import FOLDER, MARK, open_listeners
from tests.clusters import NEVER, TrainingRun, alive, kill

pytestmark = pytest.mark.cluster

SOON_S = 10.0  # well before a writer moves on to another shard
ROLES = ("actor[0]", "replay_server[0]", "param_server[0]", "learner[0]", "evaluator[0]")


def test_a_run_solves_cartpole_and_leaves_no_process(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, "--seed", "1") as run:
        run.until(lambda: run.events("began") and run.roles(), "the first step")
        marks, roles = run.marks(), run.roles()

        code = run.end()

        assert code == 0, run.stderr.read_text()
        ended = run.events("ended")[0]
        assert ended["reason"] == "goal"
        assert ended["best_mean"] >= 475.0
        assert set(roles) == {*ROLES, "replay_server[1]", "actor[1]"}
        assert alive(marks) == []


def test_a_run_goes_on_when_any_role_dies_or_hangs(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER) as run:
        run.until(lambda: run.updates() > 50, "the first updates")
        for role in ROLES:
            before = run.updates()
            kill(run.pid(role))
            run.until(lambda role=role: _recovered(run, role), f"{role} recovered")
            run.until(lambda before=before: run.updates() > before + 50, f"updates after {role} died")
        os.kill(run.pid("replay_server[1]"), signal.SIGSTOP)
        run.until(lambda: _recovered(run, "replay_server[1]"), "the shard recovered")

        assert [event["role"] for event in run.deaths()] == list(ROLES)
        silences = [event["why"] for event in run.events("lost") if event["role"] == "replay_server[1]"]
        assert "did not answer" in silences[-1]
        versions = [event["version"] for event in run.events("evaluation")]
        assert versions == sorted(versions)
        run.interrupt()
        assert run.end() == 130


def test_a_shard_that_is_killed_comes_back_with_what_it_had_acknowledged(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER, "--checkpoint.every", "100") as run:
        run.until(lambda: bool(run.checkpoints()), "a checkpoint")
        for death in range(2):
            run.until(lambda death=death: _is_up(run, "replay_server[1]", death), "the shard is shown")
            before = run.updates()
            kill(run.pid("replay_server[1]"))
            run.until(lambda death=death: len(run.events("replay_restored")) > death, "the shard recovered")
            run.until(lambda before=before: run.updates() > before + 50, "updates with it")

        held = [event["held"]["rows"] for event in run.deaths()]
        restored = run.events("replay_restored")
        assert [event["role"] for event in restored] == ["replay_server[1]"] * 2
        assert [event["rows"] >= rows for event, rows in zip(restored, held, strict=True)] == [True, True]
        assert run.events("replay_damaged") == []
        assert {event["why"] for event in run.events("snapshot_failed")} <= {"replay_server[1] died"}
        run.until(lambda: _is_up(run, "replay_server[1]", 2), "the shard is shown")
        assert run.roles()["replay_server[1]"]["gauges"]["rows"] >= held[1]
        given_up = sum(role["counts"].get("unrolls_given_up", 0) for role in run.roles().values())
        assert given_up == 0 or max(event["seconds"] for event in run.events("recovered")) > SOON_S
        run.interrupt()
        assert run.end() == 130


def test_a_supervisor_that_is_killed_is_followed_by_another_one(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER) as run:
        run.until(lambda: bool(run.events("evaluation")) and run.updates() > 50, "an evaluation")
        before = run.updates()
        old = run.marks()
        kill(run.process_with("cluster.supervisor").pid)

        run.until(lambda: len(run.events("began")) == 2, "another beginning")
        run.until(lambda: run.updates() > before + 50, "updates under the next supervisor")

        assert run.events("supervisor_lost")[0]["exit_code"] == -signal.SIGKILL
        assert len(run.events("began")) == 2
        assert alive(old) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["start", "training"])
def test_one_signal_stops_a_run_cleanly(tmp_path: Path, number: int, stage: str) -> None:
    with TrainingRun(tmp_path, *NEVER) as run:
        run.until(lambda: bool(run.marks()) if stage == "start" else run.updates() > 20, stage)
        marks = run.marks()

        run.interrupt(number)

        assert run.end() == 130
        assert alive(marks) == []
        if stage == "training":
            assert (run.path / "checkpoints" / "LATEST").exists()


def test_a_second_signal_ends_a_run_at_once(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER) as run:
        run.until(lambda: run.updates() > 20, "training")
        marks = run.marks()

        run.interrupt()
        run.interrupt()

        assert run.end() == 130
        assert alive(marks) == []


def test_a_run_lets_no_stranger_in_and_puts_itself_away_when_its_launcher_is_killed(tmp_path: Path) -> None:
    with TrainingRun(tmp_path, *NEVER) as run:
        run.until(lambda: run.updates() > 20, "training")
        for agent in ("ray::DashboardAgent", "ray::RuntimeEnvAgent"):
            run.process_with(agent)  # it bears the mark, though it named itself
        everyone = run.everyone()
        assert len(everyone) > len(ROLES)
        assert open_listeners(iter(everyone)) == []
        assert "InvalidAuthToken" in _stranger(run.process_with("gcs_server"))
        marks = run.marks()
        folder = Path(run.process_with("cluster.supervisor").environ()[FOLDER]).parent

        kill(run.process.pid)

        deadline = time.monotonic() + 30.0
        while alive(marks) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert alive(marks) == []
        assert not folder.exists()


def test_a_folder_of_ones_own_does_not_stand_in_for_ours(tmp_path: Path) -> None:
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    command = [sys.executable, "-P", "-m", "cluster.cli", "train", "gridworld", "--quiet", "--total-steps", "2000"]
    environment = {**os.environ, "PYTHONPATH": ""}

    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90, check=False
    )

    assert done.returncode == 0, done.stderr


def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    flags = ("--runtime", "ray", "--goal.total-steps", "3000")
    with (
        TrainingRun(tmp_path, *flags, preset="gridworld", name="one") as one,
        TrainingRun(tmp_path, *flags, preset="gridworld", name="two") as two,
    ):
        marks = one.until(one.marks, "the first run's Ray") | two.until(two.marks, "the second run's Ray")

        codes = one.end(), two.end()

        assert set(codes) == {0}
        assert len(marks) == 2
        assert alive(marks) == []


def _stranger(gcs: psutil.Process) -> str:
    """Return what somebody hears who comes to a run's Ray with a token of his own; there must be something."""
    port = next(s.laddr.port for s in gcs.net_connections(kind="tcp") if s.status == psutil.CONN_LISTEN)
    strange = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it asks this machine's own address, where nobody listens
    }
    stranger = subprocess.run(
        [sys.executable, "-c", f"import ray; ray.init(address='127.0.0.1:{port}', log_to_driver=False)"],
        env={**os.environ, **strange, MARK: ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert stranger.returncode != 0
    return stranger.stderr + stranger.stdout


def _is_up(run: TrainingRun, role: str, generation: int) -> bool:
    process = run.roles()[role]["process"]
    return process["generation"] == generation and process["pid"] > 0


def _recovered(run: TrainingRun, role: str) -> bool:
    return any(event["role"] == role for event in run.events("recovered"))
