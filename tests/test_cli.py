import io
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from cluster.cli import COMMANDS, main
from cluster.commands import train
from cluster.config import Config, algorithm_name, dump, load, presets
from cluster.report import CheckpointDue, EpisodesEnded, EvaluationDone, Event, Noted, Outcome, Sample
from cluster.signals import StopRequest, undisturbed
from starling.algorithms import ALGORITHMS
from starling.errors import RoleError, StarlingError
from starling.params import Params

ROOT = Path(__file__).parents[1]
PRESETS = ", ".join(preset.name for preset in presets())
Report = Callable[[Event], None]


class Said(NamedTuple):
    code: int
    out: str
    err: str


def starling(*args: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(args)
    return Said(code, out.getvalue(), err.getvalue())


class Engine:
    """Makes a run of two samples that ends as it is told."""

    def __init__(self, reason: Any = "goal", error: StarlingError | None = None, env_steps: int = 2000) -> None:
        self.reason = reason
        self.error = error
        self.env_steps = env_steps
        self.config: Config[Any] | None = None

    def __call__(self, config: Config[Any], report: Report, stopped: Callable[[], bool]) -> Outcome:
        self.config = config
        at = {"elapsed_s": 1.0, "env_steps": 1000, "updates": 30}
        params = Params.of({"q.bias": np.ones(2, np.float32)})
        report(Noted(elapsed_s=0.0, what="started", facts={"roles": 4}))
        report(EpisodesEnded(elapsed_s=0.5, env_steps=500, actor=0, returns=[21.0], lengths=[21]))
        report(Sample(**at, roles={}))
        report(EvaluationDone(**at, version=3, mean=480.0, std=1.0, episodes=100))
        report(CheckpointDue(**at, version=3, params=params, best=True, mean=480.0))
        if self.error:
            raise self.error
        report(Sample(elapsed_s=2.0, env_steps=self.env_steps, updates=60, roles={}))
        return Outcome(
            reason=self.reason, env_steps=self.env_steps, updates=60, train_s=2.0, params_sha256="0", best_mean=480.0
        )


def trained(runs: Path, *flags: str, engine: Engine | None = None) -> Said:
    out = io.StringIO()
    with redirect_stdout(out):
        code = train.main(["cartpole", "--runs", str(runs), *flags], engine or Engine())
    return Said(code, out.getvalue(), "")


@pytest.mark.usefixtures("own_umask", "own_signals")
def test_a_run_is_for_its_owner_alone(tmp_path: Path) -> None:
    flags = ["--runtime", "local", "--total-steps", "200", "--quiet", "--runs", str(tmp_path), "--run", "mine"]

    said = starling("train", "gridworld", *flags)

    run = tmp_path / "mine"
    everything = [run, *run.rglob("*")]
    assert said.code == 0, said.err
    assert {stat.S_IMODE(path.stat().st_mode) for path in everything if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in everything if path.is_file()} == {0o600}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--replay.shard", "3"], "--replay.shard is not a flag; did you mean --replay.shards?"),
        (["--dry-rn"], "--dry-rn is not a flag; did you mean --dry-run?"),
        (["--replay.shards", "x"], "replay.shards must be a whole number, got x (from flag --replay.shards)"),
        (["--learner.batch-size", "-1"], "learner.batch_size must be >= 1, got -1 (from flag --learner.batch-size)"),
        (
            ["--replay.capacity", "1000", "--learner.batch-size", "2000"],
            "learner.batch_size must be at most replay.capacity = 1000, got 2000 "
            "(from flag --learner.batch-size and flag --replay.capacity)",
        ),
        (
            ["--replay.shards", "9", "--actor.num", "2"],
            "replay.shards must be at most actor.num = 2, got 9 (from flag --replay.shards and flag --actor.num)",
        ),
        (
            ["--replay.min-windows", "30000", "--replay.capacity", "20000"],
            "replay.min_windows must be at most replay.capacity = 20000, got 30000 "
            "(from flag --replay.min-windows and flag --replay.capacity)",
        ),
        (
            ["--algorithm.hidden", "32,32"],
            "algorithm.hidden must be a list, each a whole number, got 32,32 (from flag --algorithm.hidden); "
            "write --algorithm.hidden A B",
        ),
        (["--total-steps", "0"], "goal.total_steps must be >= 1, got 0 (from flag --total-steps)"),
        (["--max-minutes", "nan"], 'max_minutes must be a finite number or "none", got nan (from flag --max-minutes)'),
        (["--seed", "-1"], "seed must be >= 0, got -1 (from flag --seed)"),
        (["--runtime", "slurm"], "runtime must be "),
        (["--quiet", "--json"], "output must be one of --quiet, --plain, --json, got --quiet --json"),
        (["--learner.batch-size", "-64"], "learner.batch_size must be >= 1, got -64 (from flag --learner.batch-size)"),
        (["--learner.batch-size", "30000"], "learner.batch_size must be at most replay.capacity = 20000, got 30000"),
        (
            ["--replay.capacity", "500", "--replay.min-windows", "100"],
            "replay.capacity must be >= 2 * replay.shards * actor.unroll_length * env.copies = 2048, got 500",
        ),
        (["--replay.capacity-bytes", "10"], "replay.capacity_bytes must be >= 116 (a row in each shard), got 10"),
        (["--algorithm.name", "ppo"], "algorithm.name must be set in a file"),
        (["--env.id", "CartPole-v9"], "environment CartPole-v9 is not known to Gymnasium"),
        (["--env.id", "Pendulum-v1"], "algorithm dqn needs discrete actions; Pendulum-v1 has a box of (1,)"),
        (["--env.kwargs", "foo=3"], "env.kwargs must be a table, each value a string or a finite number or true"),
        (["--env.kwargs", "foo", "3"], "environment CartPole-v1 could not be made: TypeError: "),
        (["--env.id", "tests.counting:Nothing"], "environment tests.counting:Nothing names Nothing, which"),
        (
            ["--run", "a/b"],
            "run must be a name of letters, digits, '.', '_' and '-' other than latest, got 'a/b' (from flag --run)",
        ),
    ],
)
def test_a_bad_flag_is_one_sentence_and_nothing_is_written(flags: list[str], sentence: str, tmp_path: Path) -> None:
    said = starling("train", "cartpole", "--runs", str(tmp_path / "runs"), *flags)

    assert said.code == 2
    assert said.err.startswith(f"starling: {sentence}")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[replay]\nshard = 2", "replay.shard is not a setting (from bad.toml); did you mean replay.shards?"),
        ("x = [", "bad.toml is not valid TOML: Invalid value (at end of document)"),
        ("preset = 3", "preset must be a name, got 3 (from bad.toml)"),
        ("preset = 'cartpool'", f"preset must be one of {PRESETS} or a file ending in .toml, got 'cartpool'"),
        (
            "algorithm.name = 'dqm'",
            f"algorithm.name must be one of {', '.join(ALGORITHMS)}, got 'dqm' (from bad.toml); did",
        ),
        ("algorithm = 3\nenv.id = 'x'", "algorithm must be a table, got 3 (from bad.toml)"),
        ("seed = 1", "env.id must be set"),
        (None, "bad.toml cannot be read: No such file or directory"),
    ],
)
def test_a_bad_file_is_one_sentence(
    content: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "bad.toml").write_text(content)

    said = starling("train", "bad.toml")

    assert said.code == 2
    assert said.err.startswith(f"starling: {sentence}")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian"], f"command must be one of {', '.join(COMMANDS)}, got 'trian'; did you mean train?"),
        (["train"], "train must be given one PRESET or FILE.toml before its flags, got nothing"),
        (
            ["train", "--seed", "3", "cartpole"],
            "train must be given one PRESET or FILE.toml before its flags, got noth",
        ),
        (["train", "cartpol"], f"preset must be one of {PRESETS} or a file ending in .toml, got 'cartpol'; "),
        (["presets", "grid"], f"preset must be one of {PRESETS} or a file ending in .toml, got 'grid'"),
        (["presets", "a", "b"], "presets must be given at most one NAME, got a b"),
        (["ls", "x"], "ls must be given flags only, got x"),
        (["show", "x"], "run 'x' is not in runs"),
        (["eval", "x", "--which", "first"], "which must be one of best, latest, got first (from flag --which)"),
    ],
)
def test_a_bad_command_is_one_sentence(
    args: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    said = starling(*args)

    assert said.code == 2
    assert said.err.startswith(f"starling: {sentence}")
    assert said.err.count("\n") == 1


def test_a_name_that_is_taken_is_refused_and_its_run_left_alone(tmp_path: Path) -> None:
    trained(tmp_path, "--run", "mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    said = starling("train", "cartpole", "--runs", str(tmp_path), "--run", "mine")

    assert said.code == 2
    assert said.err == f"starling: run must be a new name, got mine, which {tmp_path} already holds\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from cluster.cli import COMMANDS, main; code = main(['--help'])\n"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'ray', 'tyro', 'numpy', 'gymnasium', 'rich')))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True)

    assert done.returncode == 0
    assert "starling train PRESET|FILE.toml [flags]" in done.stdout


def test_settings_are_read_without_torch_or_ray() -> None:
    script = (
        "import sys; from cluster.cli import COMMANDS, main; code = main(['train', 'cartpole', '--dry-run'])\n"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'ray')))"
    )

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True)

    assert done.returncode == 0


def test_the_help_of_train_lists_every_setting_with_the_presets_value() -> None:
    said = starling("train", "gridworld", "--help")

    assert said.code == 0
    for part in ("--total-steps", "--dry-run", "--replay.shards INT", "--learner.optimizer.learning-rate FLOAT"):
        assert part in said.out
    assert "--algorithm.double, --algorithm.no-double" in said.out
    assert "GridWorld)" in " ".join(said.out.split())


@pytest.mark.parametrize("command", ["eval", "show", "ls", "presets", "doctor", "evidence"])
def test_every_command_has_help(command: str) -> None:
    said = starling(command, "--help")

    assert said.code == 0
    assert said.out.startswith(f"usage: starling {command}")


def test_no_arguments_are_answered_by_help_and_a_first_step() -> None:
    said = starling()

    assert said.code == 0
    assert said.out.endswith("try: starling train cartpole\n")


def test_presets_are_listed_with_a_line_each_and_shown_as_they_are_written() -> None:
    listed = starling("presets").out.splitlines()

    assert [line.split()[0] for line in listed] == [preset.name for preset in presets()]
    assert all(len(line.split()) > 3 for line in listed)
    assert starling("presets", "cartpole").out == (ROOT / "cluster" / "presets" / "cartpole.toml").read_text()


@pytest.mark.parametrize("name", [preset.name for preset in presets()])
def test_a_preset_is_whole_and_comes_back_from_the_run_folder(name: str, tmp_path: Path) -> None:
    config = load(name)
    path = tmp_path / "config.toml"

    path.write_text(dump(config))

    assert load(str(path)) == config
    assert algorithm_name(config) in ALGORITHMS


def test_a_file_may_lie_over_a_preset_and_flags_over_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("preset = 'cartpole'\nseed = 5\n[algorithm]\nn_step = 5\n[env]\ncopies = 4")

    said = starling("train", str(path), "--env.copies", "8", "--dry-run")

    (tmp_path / "out.toml").write_text(said.out)
    config = load(str(tmp_path / "out.toml"))
    assert (config.seed, config.algorithm.n_step, config.env.copies, config.env.id) == (5, 5, 8, "CartPole-v1")


def test_a_dry_run_prints_the_settings_and_writes_nothing(tmp_path: Path) -> None:
    said = starling("train", "cartpole", "--runs", str(tmp_path / "runs"), "--dry-run", "--seed", "7")

    assert said.code == 0
    assert said.out.startswith("seed = 7\n")
    assert not (tmp_path / "runs").exists()


def test_a_run_leaves_a_folder_that_says_everything(tmp_path: Path) -> None:
    engine = Engine()

    said = trained(tmp_path, "--plain", "--seed", "3", engine=engine)

    folder = tmp_path / "cartpole-01"
    assert said.code == 0
    assert said.out.splitlines()[0] == f"run cartpole-01  ->  {folder}"
    assert load(str(folder / "config.toml")) == engine.config
    env = json.loads((folder / "env.json").read_text())
    assert env["command"][:3] == ["starling", "train", "cartpole"]
    assert env["packages"]["numpy"] == np.__version__
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    events = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "evaluation", "checkpoint", "ended"]
    assert len((folder / "episodes.csv").read_text().splitlines()) == 2
    assert (folder / "checkpoints" / "BEST").read_text().startswith("step-30 ")
    assert list((folder / "tb").glob("events.out.tfevents.*"))


def test_runs_are_numbered_listed_and_shown(tmp_path: Path) -> None:
    trained(tmp_path, "--quiet")
    trained(tmp_path, "--quiet", engine=Engine("interrupted"))

    listed = starling("ls", "--runs", str(tmp_path)).out.splitlines()
    shown = starling("show", "latest", "--runs", str(tmp_path)).out

    assert [line.split()[:4] for line in listed[1:]] == [
        ["cartpole-01", "goal", "2k", "480"],
        ["cartpole-02", "interrupted", "2k", "480"],
    ]
    assert "CartPole-v1 by dqn, seed 0" in shown
    assert "return 480, goal 475" in shown


@pytest.mark.parametrize(
    ("reason", "env_steps", "flags", "code"),
    [
        ("goal", 2000, [], 0),
        ("budget", 2000, ["--total-steps", "2000"], 0),
        ("budget", 2000, ["--goal.total-steps", "2000"], 0),
        ("budget", 500, ["--max-minutes", "1"], 0),
        ("budget", 10**9, [], 1),
        ("budget", 10**9, ["--max-minutes", "1"], 1),
        ("budget", 10**9, ["--goal.return-mean", "none"], 0),
        ("interrupted", 500, [], 130),
    ],
)
def test_the_exit_code_tells_success_from_a_budget_that_was_too_small(
    reason: str, env_steps: int, flags: list[str], code: int, tmp_path: Path
) -> None:
    assert trained(tmp_path, "--quiet", *flags, engine=Engine(reason, env_steps=env_steps)).code == code


def test_an_error_of_a_run_is_kept_with_it(tmp_path: Path) -> None:
    with pytest.raises(RoleError):
        trained(tmp_path, "--quiet", engine=Engine(error=RoleError("learner is gone")))

    last = json.loads((tmp_path / "cartpole-01" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["error"]) == ("failed", "learner is gone")
    assert "Traceback" in last["traceback"]
    assert starling("ls", "--runs", str(tmp_path)).out.splitlines()[1].split()[1] == "failed"


@pytest.mark.usefixtures("own_signals")
def test_the_first_ctrl_c_asks_the_second_ends_at_once_and_later_ones_disturb_nothing() -> None:
    with StopRequest() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("own_signals")
def test_a_run_that_nobody_stopped_gives_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGINT)

    with StopRequest():
        assert signal.getsignal(signal.SIGINT) is not before

    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("own_signals")
def test_signals_are_held_back_while_something_is_put_away() -> None:
    with StopRequest() as stopped:
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            came_inside = stopped()
        assert (came_inside, stopped()) == (False, True)


def test_a_cluster_that_cannot_be_reached_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unreachable.py").write_text(
        "from starling.errors import ClusterError\n"
        "def main(args):\n    raise ClusterError('ray at 10.0.0.1:6379 does not answer')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "reach", ("unreachable", "", ""))

    said = starling("reach")

    assert (said.code, said.err) == (3, "starling: ray at 10.0.0.1:6379 does not answer\n")
    assert "Traceback" in starling("reach", "--debug").err
