import io
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster.cli import main as starling
from cluster.commands import evidence
from cluster.evidence import Ran, read_seeds, run_command
from cluster.provenance import Code, code_version
from cluster.results import Result, ResultsFile, current
from cluster.results_page import HEAD, Reference, render
from cluster.run_folder import RunFolder
from starling.errors import ConfigError, RunError

ENV = {
    "started": "2026-01-01T00:00:00+00:00",
    "cpu": "A chip",
    "cores": 2,
    "memory_gib": 24.0,
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "ray": "2.60.0", "gymnasium": "1.4.0", "numpy": "2.4.6"},
}
RESULT = Result(
    date="2026-01-01",
    commit="a" * 40,
    dirty=False,
    command="starling train cartpole --seed 1",
    preset="cartpole",
    algorithm="dqn",
    env="CartPole-v1",
    runtime="ray",
    seed=1,
    settings="0",
    goal=475.0,
    result="goal",
    return_mean=480.0,
    return_std=1.0,
    final_mean=480.0,
    env_steps=40_000,
    updates=900,
    train_s=8.0,
    start_s=3.0,
    wall_s=14.0,
    machine={"cpu": "A chip", "cores": 2, "memory_gib": 24.0, "python": "3.11.7", "torch": "2.13.0"},
)


class Runs:
    """Stands in for `starling train`: writes a run folder that ends with what each seed is to come to."""

    def __init__(self, endings: dict[int, str] | None = None) -> None:
        self.endings = endings or {}
        self.calls: list[list[str]] = []

    def __call__(self, args: Sequence[str], stopped: Callable[[], bool]) -> Ran:
        self.calls.append(list(args))
        given = dict(pairwise(args))
        ending = self.endings.get(int(given["--seed"]), "goal")
        if ending == "refused":
            return Ran(2, 0.5, "starling: environment X is not known to Gymnasium")
        with RunFolder.create(Path(given["--runs"]), given["--run"], "seed = 0\n", ENV) as folder:
            write_ending(folder, ending)
        return Ran({"goal": 0, "interrupted": 130}.get(ending, 1), 14.0)

    @property
    def seeds(self) -> list[int]:
        return [int(call[call.index("--seed") + 1]) for call in self.calls]


def write_ending(folder: RunFolder, ending: str) -> None:
    folder.add_event({"event": "began", "elapsed_s": 0.0, "start_s": 3.5})
    folder.add_event({"event": "evaluation", "mean": 480.0, "std": 2.0})
    folder.add_event({"event": "evaluation", "mean": 300.0, "std": 9.0})
    folder.add_metrics({"elapsed_s": 4.0, "env_steps": 1500, "updates": 40})
    if ending == "failed":
        folder.add_event({"event": "failed", "error": "learner\nis gone", "traceback": "..."})
    elif ending != "killed":
        folder.add_event({"event": "ended", "reason": ending, "env_steps": 2000, "updates": 60, "train_s": 5.0})


class Said(NamedTuple):
    code: int
    out: str
    rows: list[dict[str, Any]]


class Desk:
    """A folder in which evidence is asked for, of a commit that a test may change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "docs" / "results.jsonl"
        self.code = Code("c" * 40, False)

    def ask(self, run: Any, *args: str) -> Said:
        out = io.StringIO()
        places = ["--results", str(self.file), "--runs", str(self.path / "runs")]
        with redirect_stdout(out):
            code = evidence.main([*args, *places], run, lambda: self.code)
        return Said(code, out.getvalue(), self.rows())

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def page(self) -> str:
        return self.file.with_suffix(".md").read_text()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def table_of(page: str) -> list[dict[str, str]]:
    """Return the rows of a page's first table, by column."""
    lines = page[page.index("| task") :].split("\n\n")[0].strip().splitlines()
    return [dict(zip(HEAD, (cell.strip() for cell in line[2:-2].split(" | ")), strict=True)) for line in lines[2:]]


@pytest.mark.parametrize(
    ("text", "seeds"), [("1..5", [1, 2, 3, 4, 5]), ("1,3,7", [1, 3, 7]), ("4", [4]), ("0, 5..6", [0, 5, 6])]
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "5..1", "1..", "-1", "1,,2", "1..1000000000", "1,1", "1..3,2", "1.5"])
def test_other_seeds_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^seeds must be .*, got "):
        read_seeds(text)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["cartpole", "--seeds", "5..1"], "seeds must be a list of numbers and ranges such as 1..5 or 1,3,7"),
        ([], "evidence must be given at least one PRESET or FILE.toml before its flags, got nothing"),
        (["cartpol"], "preset must be one of "),
        (["cartpole", "--seed", "3"], "evidence must be given --seeds, got --seed"),
        (["cartpole", "--quiet"], "evidence must be given settings of the run, got --quiet"),
        (["cartpole", "--replay.shard", "3"], "--replay.shard is not a flag; did you mean --replay.shards?"),
        (["cartpole", "--agian"], "--agian is not a flag; did you mean --again?"),
        (["cartpole", "--total-steps", "0"], "goal.total_steps must be >= 1, got 0"),
        (["cartpole", "--results", "x.csv"], "results must be a file ending in .jsonl, got x.csv"),
        (["cartpole", "--render"], "evidence --render must be given no presets, got cartpole"),
        (["--render"], "docs/results.jsonl cannot be read: No such file or directory"),
    ],
)
def test_a_bad_call_is_one_sentence_and_nothing_is_run(
    args: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    err = io.StringIO()

    with redirect_stderr(err):
        code = starling(["evidence", *args])

    assert code == 2
    assert err.getvalue().startswith(f"starling: {sentence}")
    assert err.getvalue().count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_each_seed_is_run_once_and_kept_with_all_that_repeats_it(desk: Desk) -> None:
    runs = Runs()

    said = desk.ask(runs, "cartpole", "--learner.batch-size", "32", "--seeds", "1..2", "--total-steps", "9000")

    assert said.code == 0
    settings = ["--goal.total-steps", "9000", "--learner.batch-size", "32"]
    assert [call[:8] for call in runs.calls] == [
        ["train", "cartpole", *settings, "--seed", "1"],
        ["train", "cartpole", *settings, "--seed", "2"],
    ]
    assert all("--quiet" in call for call in runs.calls)
    first = said.rows[0]
    assert first["command"] == f"starling train cartpole {' '.join(settings)} --seed 1"
    assert (first["commit"], first["dirty"], first["seed"]) == ("c" * 40, False, 1)
    assert (first["preset"], first["algorithm"], first["env"]) == ("cartpole", "dqn", "CartPole-v1")
    assert (first["result"], first["goal"], first["exit_code"]) == ("goal", 475.0, 0)
    assert (first["return_mean"], first["return_std"], first["final_mean"]) == (480.0, 2.0, 300.0)
    assert (first["env_steps"], first["updates"]) == (2000, 60)
    assert (first["train_s"], first["start_s"], first["wall_s"]) == (5.0, 3.5, 14.0)
    assert first["machine"] == {
        **{name: ENV[name] for name in ("cpu", "cores", "memory_gib", "python")},
        **{name: ENV["packages"][name] for name in ("torch", "ray", "gymnasium")},  # type: ignore[index]
    }


def test_runs_that_failed_or_fell_short_count_and_are_told_by_the_exit_code(desk: Desk) -> None:
    said = desk.ask(Runs({2: "budget", 3: "failed", 4: "killed"}), "cartpole", "--seeds", "1..4")

    assert said.code == 1
    assert [row["result"] for row in said.rows] == ["goal", "budget", "failed", "killed"]
    assert (said.rows[2]["error"], said.rows[2]["env_steps"], said.rows[2]["train_s"]) == ("learner\nis gone", 1500, 4)
    assert table_of(desk.page())[0]["solved"] == "1/4"
    assert "- `starling train cartpole --seed 3`: learner is gone" in desk.page()


def test_a_budget_that_was_asked_for_is_success(desk: Desk) -> None:
    assert desk.ask(Runs({1: "asked"}), "cartpole", "--seeds", "1", "--max-minutes", "1").code == 0


def test_what_was_run_before_an_interruption_is_not_run_again(desk: Desk) -> None:
    with pytest.raises(KeyboardInterrupt):
        desk.ask(Runs({3: "interrupted"}), "cartpole", "--seeds", "1..4")
    kept = desk.rows()
    runs = Runs()

    said = desk.ask(runs, "cartpole", "--seeds", "1..4")

    assert [row["seed"] for row in kept] == [1, 2]
    assert runs.seeds == [3, 4]
    assert said.code == 0
    assert said.rows[:2] == kept
    assert [row["seed"] for row in said.rows] == [1, 2, 3, 4]


def test_a_result_that_is_kept_still_decides_the_exit_code(desk: Desk) -> None:
    desk.ask(Runs({1: "budget"}), "cartpole", "--seeds", "1")
    runs = Runs()

    said = desk.ask(runs, "cartpole", "--seeds", "1")

    assert runs.calls == []
    assert said.code == 1


def test_other_code_other_settings_or_again_is_another_run(desk: Desk) -> None:
    desk.ask(Runs(), "cartpole", "--seeds", "1")
    runs = Runs()

    desk.ask(runs, "cartpole", "--seeds", "1", "--again")
    desk.ask(runs, "cartpole", "--seeds", "1", "--actor.num", "3")
    desk.code = Code("d" * 40, False)
    desk.ask(runs, "cartpole", "--seeds", "1", "--any-commit")
    desk.ask(runs, "cartpole", "--seeds", "1")
    desk.code = Code("d" * 40, True)
    desk.ask(runs, "cartpole", "--seeds", "1")

    assert len(runs.calls) == 4
    assert [(row["commit"][0], row["dirty"]) for row in desk.rows()] == [
        *[("c", False)] * 3,
        ("d", False),
        ("d", True),
    ]


def test_a_file_of_settings_that_was_changed_is_another_recipe(desk: Desk) -> None:
    mine, runs = desk.path / "mine.toml", Runs()

    for n_step in (3, 5, 5):
        mine.write_text(f"preset = 'cartpole'\n[algorithm]\nn_step = {n_step}\n")
        desk.ask(runs, str(mine), "--seeds", "1")

    assert len(runs.calls) == 2


def test_a_run_that_was_refused_is_no_result_and_its_sentence_is_passed_on(desk: Desk) -> None:
    with pytest.raises(RunError, match=r"^environment X is not known to Gymnasium$"):
        desk.ask(Runs({1: "refused"}), "cartpole", "--seeds", "1")

    assert desk.rows() == []


def test_half_a_line_is_no_result_and_is_cut_off_by_the_next_one(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(RESULT)
    whole = file.path.read_bytes()

    for cut in (len(whole) - 1, 20, 1):
        file.path.write_bytes(whole + whole[:cut])
        assert file.read() == [RESULT]
        file.append(replace(RESULT, seed=2))
        assert [result.seed for result in file.read()] == [1, 2]
        assert len(file.path.read_bytes().splitlines()) == 2


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(RESULT)
    file.path.write_bytes(file.path.read_bytes() + b'{"seed": 2}\n')

    with pytest.raises(RunError, match=r"results\.jsonl line 2 is damaged: KeyError 'date'; mend or remove that line"):
        file.read()


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_run(desk: Desk) -> None:
    (desk.path / "docs").write_text("")
    runs = Runs()

    with pytest.raises(RunError, match="cannot be written"):
        desk.ask(runs, "cartpole")

    assert runs.calls == []


def test_the_page_says_how_many_were_solved_how_well_and_how_fast() -> None:
    seconds, returns, steps = [6.0, 8.0, 10.0], [480.0, 500.0, 100.0], [30_000, 40_000, 50_000]
    measured = zip(seconds, returns, steps, strict=True)
    results = [
        replace(
            RESULT,
            seed=seed,
            command=f"starling train cartpole --seed {seed}",
            train_s=train_s,
            return_mean=return_mean,
            env_steps=env_steps,
            result="goal" if return_mean >= 475 else "budget",
        )
        for seed, (train_s, return_mean, env_steps) in enumerate(measured, 1)
    ]

    page = render(results, "results.jsonl", {"CartPole-v1": Reference(475.0, "somebody|else")})

    assert "from `results.jsonl`" in page
    assert "| somebody" not in page
    assert table_of(page) == [
        {
            "task": "CartPole-v1",
            "algorithm": "dqn",
            "recipe": "`starling train cartpole`",
            "runtime": "ray",
            "solved": "2/3",
            "return": "360 ± 225 (goal 475)",
            "env steps: mean (max)": "40k (50k)",
            "training: mean (max)": "8.0 s (10.0 s)",
            "in all: mean (max)": "14.0 s (14.0 s)",
            "reference": "475 (somebody\\|else)",
            "machine": "A",
            "commit": "aaaaaaaaa",
        }
    ]
    assert "- A: A chip, 2 cores, 24.0 GiB; python 3.11.7, torch 2.13.0\n" in page


def test_a_task_without_goal_reference_or_evaluation_has_a_row_all_the_same() -> None:
    bare = replace(RESULT, env="Mine-v0", goal=None, result="failed", return_mean=None, env_steps=None, train_s=None)

    row = table_of(render([bare], "results.jsonl"))[0]

    assert (row["solved"], row["return"], row["reference"]) == ("1 runs", "-", "-")
    assert row["env steps: mean (max)"] == row["training: mean (max)"] == "-"


def test_of_each_seed_the_code_that_ran_it_last_counts_and_repeats_add_to_it() -> None:
    old = [replace(RESULT, seed=seed, command=f"starling train cartpole --seed {seed}") for seed in (1, 2)]
    first, again = (replace(old[0], commit="b" * 40, result=result) for result in ("budget", "goal"))

    counting, replaced = current([*old, first, again])

    assert counting == [old[1], first, again]
    assert replaced == [old[0]]
    page = render([*old, first, again], "results.jsonl")
    assert table_of(page)[0]["solved"] == "2/3"
    assert table_of(page)[0]["commit"] == "aaaaaaaaa, bbbbbbbbb"
    assert "## Code that was replaced" in page


def test_rendering_alone_runs_nothing_and_repeats_the_page(desk: Desk) -> None:
    desk.ask(Runs(), "cartpole", "--seeds", "1..2")
    before = desk.page()
    desk.file.with_suffix(".md").unlink()
    runs = Runs()

    said = desk.ask(runs, "--render")

    assert (said.code, runs.calls) == (0, [])
    assert desk.page() == before


def test_the_commit_is_the_last_one_that_changed_the_code(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *args], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(path: str) -> str:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
        git("add", "--all")
        git("commit", "-m", path)
        return git("rev-parse", "HEAD")

    assert code_version(tmp_path) == Code(None, False)
    git("init", "-q")
    code = commit("cluster/cli.py")
    commit("docs/results.md")
    assert code_version(tmp_path) == Code(code, False)
    (tmp_path / "docs" / "results.md").write_text("more")
    assert code_version(tmp_path) == Code(code, False)
    (tmp_path / "cluster" / "new.py").write_text("x = 1")
    assert code_version(tmp_path) == Code(code, True)


def test_the_command_is_run_in_a_process_of_its_own_and_its_last_words_are_kept() -> None:
    ran = run_command(["train", "cartpol"], lambda: False)

    assert ran.exit_code == 2
    assert ran.wall_s > 0
    assert ran.said.startswith("starling: preset must be one of ")


def test_a_request_to_stop_reaches_the_run_which_ends_cleanly(tmp_path: Path) -> None:
    endless = ["--goal.return-mean", "none", "--total-steps", "1000000000", "--goal.max-minutes", "5"]
    events = tmp_path / "a" / "events.jsonl"

    ran = run_command(
        ["train", "gridworld", *endless, "--runtime", "local", "--runs", str(tmp_path), "--run", "a", "--quiet"],
        lambda: events.exists() and "began" in events.read_text(),
    )

    assert ran.exit_code == 130
    assert json.loads(events.read_text().splitlines()[-1])["reason"] == "interrupted"


class Signalled(Runs):
    """Is asked to stop during each run."""

    def __call__(self, args: Sequence[str], stopped: Callable[[], bool]) -> Ran:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(args, stopped)


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize(("ending", "kept"), [("goal", [1]), ("budget", [1]), ("failed", []), ("interrupted", [])])
def test_a_signal_ends_it_with_whole_files_and_a_run_that_it_cut_short_is_no_result(
    ending: str, kept: list[int], desk: Desk
) -> None:
    with pytest.raises(KeyboardInterrupt):
        desk.ask(Signalled({1: ending}), "cartpole", "--seeds", "1..3")

    assert [row["seed"] for row in desk.rows()] == kept
    assert not kept or table_of(desk.page())[0]["solved"].endswith("/1")


@pytest.mark.learns
def test_the_gridworld_is_solved_and_kept_by_the_real_command(desk: Desk) -> None:
    said = desk.ask(run_command, "gridworld", "--runtime", "local", "--seeds", "1")

    assert said.code == 0
    (row,) = said.rows
    assert row["return_mean"] == pytest.approx(0.8)
    assert (row["result"], row["runtime"]) == ("goal", "local")
    assert 0 < row["train_s"] < row["wall_s"]
    assert row["machine"]["cores"] >= 1
