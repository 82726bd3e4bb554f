"""What lies in the folder of a command: a person's own modules are found, and none stands in for ours."""

from pathlib import Path

import pytest

from cluster.bench.process import run_bench
from cluster.evidence import run_command
from cluster.trials import attempt

ROOT = Path(__file__).parents[1]
OURS = ("actors", "learner", "cluster", "starling")


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with packages of our names, and an environment."""
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "mine.py").write_text("from gymnasium.envs.classic_control import CartPoleEnv as Mine\n")
    (tmp_path / "mine.toml").write_text('preset = "cartpole"\n[env]\nid = "mine:Mine"\ntime_limit = 50\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_a_trial_makes_an_environment_of_that_folder_with_our_modules() -> None:
    trial = attempt("env", "mine:Mine", limit_s=60.0, stopped=never)

    assert trial.answer is not None, trial.said
    assert trial.answer["actions"] == "2 actions"


def test_evidence_runs_our_command() -> None:
    assert run_command(["presets"], never).exit_code == 0


def test_a_bench_measures_an_environment_of_that_folder_with_our_modules() -> None:
    (figure,) = run_bench("actors", "mine.toml", 0.1)

    assert figure.name == "actors.efficiency.mine"
