import errno
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.checkpoints import Checkpoints, load_checkpoint, load_to_resume
from cluster.config import Config, dump, load, parse
from cluster.contents import replay_folder
from cluster.local import run_local
from cluster.report import CheckpointDue, Event, Outcome
from cluster.reporter import Reporter
from cluster.resume import resumed, start_of
from cluster.roles import FRESH, Start
from cluster.run_folder import Run, RunFolder
from cluster.signals import STOPPING
from cluster.terminal import QuietView
from starling.metrics import no_clock
from tests.test_cli import Said, starling

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = {
    "seed": 3,
    "runtime": '"local"',
    "env.id": '"starling.gridworld:GridWorld"',
    "env.copies": 4,
    "actor.num": 2,
    "actor.unroll_length": 8,
    "replay.shards": 2,
    "replay.capacity": 1000,
    "replay.min_windows": 100,
    "algorithm.hidden": [8],
    "algorithm.n_step": 2,
    "learner.batch_size": 16,
    "evaluator.episodes": 3,
    "evaluator.copies": 3,
    "evaluator.every": 2,
    "goal.total_steps": 1300,
    "checkpoint.every": 15,
}


class KilledError(Exception):
    """Stands for the end of a process in the middle of a run."""


class Nothing:
    """Records no curves."""

    def add(self, env_steps: int, scalars: Any) -> None:
        """Forget them."""

    def close(self) -> None:
        """Nothing is held open."""


class Warned(QuietView):
    """Remembers what went wrong."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def warned(self, sentence: str) -> None:
        self.sentences.append(sentence)


def small(**settings: Any) -> Config[Any]:
    table = {**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}
    return parse("\n".join(f"{key} = {value}" for key, value in table.items()))


def keep(events: list[Event], folder: Path, config: Config[Any]) -> Checkpoints:
    """Save every checkpoint among the events, as the reporter does."""
    run = RunFolder.create(folder.parent, folder.name, dump(config), {"started": "2026"})
    reporter = Reporter(run, QuietView(), Nothing(), config)
    for event in events:
        if isinstance(event, CheckpointDue):
            reporter(event)
    run.close()
    return run.checkpoints


def run_until(turns: int, config: Config[Any], run: Path | None = None) -> list[Event]:
    """Make a run that is killed after so many turns, and return what it reported."""
    events: list[Event] = []
    left = iter(range(turns))

    def stopped() -> bool:
        if next(left, None) is None:
            raise KilledError
        return False

    with pytest.raises(KilledError):
        run_local(config, events.append, stopped, no_clock, in_folder(config, run))
    return events


def in_folder(config: Config[Any], run: Path | None) -> Start:
    """Return the start of a new run whose shards are outlived by what they hold, if it has a folder."""
    return FRESH if run is None else Start(folder=str(replay_folder(config.replay, run)))


@pytest.mark.parametrize(("kind", "turns"), [("adam", 40), ("adam", 79), ("rmsprop", 55), ("sgd", 55)])
def test_a_resumed_run_ends_with_the_very_bits_of_the_undisturbed_one(kind: str, turns: int, tmp_path: Path) -> None:
    config = small(learner__optimizer__kind=f'"{kind}"', actor__fetch_every=100)
    whole = run_local(config, lambda event: None, clock=no_clock)

    keep(run_until(turns, config, tmp_path / "kept" / "a"), tmp_path / "a", config)
    (tmp_path / "kept" / "a" / "replay").rename(tmp_path / "a" / "replay")
    start, _ = resumed(Run(tmp_path / "a"), config)
    again = run_local(config, lambda event: None, clock=no_clock, start=start)

    assert start.past.updates > 0
    assert again == whole


def test_a_run_whose_actors_have_no_networks_is_resumed_to_the_very_bits_too(tmp_path: Path) -> None:
    config = small(inference__placement='"central"', inference__num=2)
    whole = run_local(config, lambda event: None, clock=no_clock)

    keep(run_until(60, config, tmp_path / "kept" / "a"), tmp_path / "a", config)
    (tmp_path / "kept" / "a" / "replay").rename(tmp_path / "a" / "replay")
    start, _ = resumed(Run(tmp_path / "a"), config)
    again = run_local(config, lambda event: None, clock=no_clock, start=start)

    assert start.past.updates > 0
    assert again == whole
    assert whole.params_sha256 != run_local(small(), lambda event: None, clock=no_clock).params_sha256


def test_checkpoints_fall_on_counts_of_updates() -> None:
    events: list[Event] = []
    run_local(small(checkpoint__every=20), events.append, clock=no_clock)

    due = [event for event in events if isinstance(event, CheckpointDue) and event.states]
    assert [event.number for event in due] == list(range(1, len(due) + 1))
    assert [event.updates for event in due[:-1]] == [20 * event.number for event in due[:-1]]


def test_without_a_schedule_there_is_one_checkpoint_at_the_end() -> None:
    events: list[Event] = []
    run_local(small(checkpoint__every=0), events.append, clock=no_clock)

    (due,) = [event for event in events if isinstance(event, CheckpointDue) and event.states]
    assert due.env_steps >= 1300


def test_a_run_that_was_asked_to_stop_goes_on_where_it_was(tmp_path: Path) -> None:
    config = small()
    events: list[Event] = []
    turns = iter(range(50))
    begin = in_folder(config, tmp_path / "kept" / "a")
    stopped = run_local(config, events.append, lambda: next(turns, None) is None, no_clock, begin)

    keep(events, tmp_path / "a", config)
    (tmp_path / "kept" / "a" / "replay").rename(tmp_path / "a" / "replay")
    start, name = resumed(Run(tmp_path / "a"), config)
    after: list[Event] = []
    end = run_local(config, after.append, clock=no_clock, start=start)

    assert (stopped.reason, name) == ("interrupted", f"step-{stopped.updates}")
    assert start.past.env_steps == stopped.env_steps
    assert end.updates > stopped.updates
    versions = [event.version for event in [*events, *after] if isinstance(event, CheckpointDue) and event.states]
    assert versions == sorted(set(versions))
    assert not start.lost
    sampled_per_insert = 2.0
    windows = [start.states[f"replay_server[{shard}]"].meta["inserted"] for shard in range(2)]
    assert start.states["learner[0]"].meta["source"]["sampled"] <= sampled_per_insert * sum(windows)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    config = small()
    keep(run_until(45, config), tmp_path / "a", config)

    with pytest.raises(Exception, match=r"step-\d+ was made with env.copies = 4, and config.toml says 5$"):
        resumed(Run(tmp_path / "a"), small(env__copies=5))


def test_the_stored_checkpoint_of_schema_1_still_goes_on(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "schema-1", tmp_path / "a")
    run = Run(tmp_path / "a")
    config = load(str(run.config))

    start, name = resumed(run, config)
    assert start.lost == "checkpoint step-132 kept none of it"
    end = run_local(replace(config, goal=replace(config.goal, total_steps=2700)), lambda event: None, start=start)

    assert name == "step-132"
    assert load_checkpoint(run.path / "checkpoints", "best")[1]["mean"] == pytest.approx(0.8)
    assert end.updates > start.past.updates == 132


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the finished run `a`; copy it before you change it."""
    runs = tmp_path_factory.mktemp("made")
    (runs / "a.toml").write_text(dump(small()))
    assert starling("train", str(runs / "a.toml"), "--run", "a", "--runs", str(runs), "--quiet").code == 0
    return runs


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def resume(runs: Path, *flags: str, run: str = "a") -> Said:
    return starling("train", "--resume", run, "--runs", str(runs), *flags)


def rows(run: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def test_a_run_goes_on_in_its_folder_to_a_further_goal(runs: Path) -> None:
    before = rows(runs / "a", "metrics.jsonl")

    said = resume(runs, "--total-steps", "1500", "--plain", "--evaluator.every", "5", run="latest")

    after = rows(runs / "a", "metrics.jsonl")
    assert said.code == 0
    assert said.out.splitlines()[1].startswith("resumed at step-")
    assert after[: len(before)] == before
    assert after[-1]["env_steps"] >= 1500 > before[-1]["env_steps"]
    assert [event["event"] for event in rows(runs / "a", "events.jsonl")].count("resumed") == 1
    config = load(str(runs / "a" / "config.toml"))
    assert (config.goal.total_steps, config.evaluator.every) == (1500, 5)
    assert (runs / "a" / "episodes.csv").read_text().count("elapsed_s") == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--learner.batch-size", "32"],
            "learner.batch_size must stay 16 when a is resumed, got 32; only goal.*, evaluator.*, checkpoint.*, "
            "replay.samples_per_insert, replay.durability, replay.fsync_every_s, replay.folder and, with ray, "
            "actor.num, replay.shards, replay.capacity, replay.capacity_bytes may change, and --init-from a begins a "
            "new run with its parameters",
        ),
        (["--actor.num", "3"], "actor.num must stay 2 when a is resumed, got 3"),
        (["--seed", "9"], "seed must stay 3 when a is resumed, got 9"),
        (["--env.reward-scale", "2"], "env.reward_scale must stay 1.0 when a is resumed, got 2.0"),
        (["--at", "step-7"], "{runs}/a/checkpoints/step-7/manifest.json cannot be read: No such file or directory; "
                             "the newest usable checkpoint is step-"),
        (["--at", "../x"], "at must name a checkpoint, got '../x'"),
        (["--run", "b"], "resume must come without --run and --init-from, got both"),
        (["--if-exists", "maybe"], "if_exists must be one of fail, new, resume, got maybe (from flag --if-exists)"),
    ],
)  # fmt: skip
def test_a_resume_that_cannot_be_is_one_sentence_and_changes_nothing(
    flags: list[str], sentence: str, runs: Path
) -> None:
    before = contents(runs)

    said = resume(runs, *flags)

    assert said.code == 2
    assert said.err.startswith(f"starling: {sentence.format(runs=runs)}")
    assert said.err.count("\n") == 1
    assert contents(runs) == before


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock")
    return {str(path): path.read_bytes() for path in files}


def test_an_unknown_run_is_not_resumed(runs: Path) -> None:
    assert resume(runs, run="b").err == f"starling: run 'b' is not in {runs}\n"
    assert starling("train", "gridworld", "--resume", "a", "--runs", str(runs)).code == 2
    assert starling("train", "gridworld", "--at", "step-1", "--runs", str(runs)).code == 2


def test_a_run_that_somebody_makes_is_not_resumed(runs: Path) -> None:
    with RunFolder.reopen(Run(runs / "a")):
        said = resume(runs)

    assert (said.code, said.err) == (2, f"starling: run a is in use by process {os.getpid()}\n")


def newest_snapshot(runs: Path, shard: int) -> Path:
    state = load_to_resume(runs / "a" / "checkpoints").states[f"replay_server[{shard}]"]
    return runs / "a" / "replay" / f"shard-{shard}" / "snapshots" / str(state.meta["snapshot"])


def damaged_roles(runs: Path) -> Path:
    latest = load_to_resume(runs / "a" / "checkpoints").facts["name"]
    return runs / "a" / "checkpoints" / latest / "roles.codec"


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        (damaged_roles, "{file} is damaged: its sha256 is not the one in the manifest"),
        (lambda runs: newest_snapshot(runs, 1) / "index.codec", "{file} is damaged: its sha256 is not the one that"),
        (lambda runs: max(newest_snapshot(runs, 0).glob("*.seg")), "{file} is damaged: it must have {size} bytes, got"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_one_to_use_instead(
    of: Callable[[Path], Path], sentence: str, runs: Path
) -> None:
    latest = load_to_resume(runs / "a" / "checkpoints").facts["name"]
    file = of(runs)
    content = file.read_bytes()
    file.unlink()  # what older snapshots link stays
    file.write_bytes(content[:-1])

    said = resume(runs)
    older = said.err.split()[-5]
    again = resume(runs, "--at", older, "--quiet")

    assert said.err.startswith(f"starling: {sentence.format(file=file, size=len(content))}")
    assert "; the newest usable checkpoint" in said.err
    assert said.err.endswith(f"is {older}: --at {older} goes on from there\n")
    assert again.code == 0
    assert older != latest


def test_snapshots_go_with_their_checkpoints_and_what_they_hold_with_them(runs: Path) -> None:
    named = Checkpoints(runs / "a" / "checkpoints").snapshots()

    there = [{path.name for path in (runs / "a" / "replay").glob(f"shard-{n}/snapshots/*")} for n in range(2)]

    assert there == [named, named]
    assert 3 <= len(named) <= 4  # checkpoint.keep, and perhaps the best


def test_contents_that_are_gone_are_declared_lost_and_learning_waits_again(runs: Path) -> None:
    shutil.rmtree(runs / "a" / "replay")

    said = resume(runs, "--total-steps", "1500", "--plain")

    folder = runs / "a" / "replay"
    sentence = f"contents of the replay are lost: {folder} is not there; learning waits for 100 windows again"
    assert (said.code, said.out.splitlines()[2]) == (0, sentence)
    assert [event["why"] for event in rows(runs / "a", "events.jsonl") if event["event"] == "replay_lost"] == [
        f"{folder} is not there"
    ]


def test_a_replays_folder_is_found_from_wherever_the_run_is_resumed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--run", "b", "--runs", str(runs), "--replay.folder", "fast", "--quiet"]
    assert starling("train", str(runs / "a.toml"), *flags).code == 0

    monkeypatch.chdir(runs)
    said = resume(runs, "--total-steps", "1500", "--plain", run="b")

    assert load(str(runs / "b" / "config.toml")).replay.folder == str(tmp_path / "fast")
    assert said.code == 0
    assert "are lost" not in said.out
    assert not (runs / "fast").exists()


def test_a_replays_folder_is_not_taken_from_a_run_of_the_same_name(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "fast" / "a").mkdir(parents=True)

    said = starling(
        "train", "gridworld", "--run", "a", "--runs", str(tmp_path), "--replay.folder", str(tmp_path / "fast")
    )

    sentence = f"run must be a new name, got a, of which {tmp_path / 'fast' / 'a'} holds the replay already"
    assert (said.code, said.err) == (2, f"starling: {sentence}\n")
    assert not (tmp_path / "a").exists()


def test_contents_that_were_lost_before_are_no_reason_to_refuse_the_run_again(runs: Path) -> None:
    shutil.rmtree(runs / "a" / "replay")
    (runs / "a" / "replay" / "shard-0" / "live").mkdir(parents=True)  # it went on, and was killed before a checkpoint

    said = resume(runs, "--total-steps", "1500", "--plain")

    assert said.code == 0
    assert f"contents of the replay are lost: no snapshot is in {runs / 'a' / 'replay'}; learning waits" in said.out


def test_a_shard_that_took_no_snapshot_for_the_last_checkpoint_goes_on_with_its_log(tmp_path: Path) -> None:
    config = small()
    events = run_until(45, config, tmp_path / "kept" / "a")
    due = [event for event in events if isinstance(event, CheckpointDue) and event.states][-1]
    states = {role: state for role, state in due.states.items() if role != "replay_server[0]"}
    config = replace(config, runtime="ray")
    keep([replace(due, states=states)], tmp_path / "a", config)
    (tmp_path / "kept" / "a" / "replay").rename(tmp_path / "a" / "replay")

    for shards, contents in ((2, "newest"), (1, "moved_newest")):
        start, _ = resumed(Run(tmp_path / "a"), replace(config, replay=replace(config.replay, shards=shards)))

        assert (start.contents, start.lost) == (contents, "")
        assert [start.replay.meta(shard) is None for shard in range(2)] == [True, False]
        assert len(start.replay.states) == 2


def test_a_log_that_was_being_replaced_when_its_shard_died_is_not_lost(tmp_path: Path) -> None:
    config = small()
    events = run_until(45, config, tmp_path / "kept" / "a")
    due = [event for event in events if isinstance(event, CheckpointDue) and event.states][-1]
    states = {role: state for role, state in due.states.items() if "replay" not in role}  # before the first snapshot
    config = replace(config, runtime="ray")
    keep([replace(due, states=states)], tmp_path / "a", config)
    for shard in (tmp_path / "kept" / "a" / "replay").glob("shard-*"):
        shutil.rmtree(shard / "snapshots")
        shard.joinpath("live").rename(shard / ".gone-live")
    (tmp_path / "kept" / "a" / "replay").rename(tmp_path / "a" / "replay")

    start, _ = resumed(Run(tmp_path / "a"), config)

    assert (start.contents, start.lost) == ("newest", "")


def test_a_run_that_keeps_nothing_goes_on_without_what_its_shards_held(runs: Path) -> None:
    switched_off = resume(runs, "--total-steps", "1500", "--quiet", "--replay.durability", "none")
    again = resume(runs, "--total-steps", "1700", "--plain")

    assert (switched_off.code, again.code) == (0, 0)
    assert "contents of the replay are lost: checkpoint step-" in again.out
    assert rows(runs / "a", "metrics.jsonl")[-1]["env_steps"] >= 1700


def test_what_came_back_is_an_event(runs: Path) -> None:
    resume(runs, "--total-steps", "1500", "--quiet")

    restored = [event for event in rows(runs / "a", "events.jsonl") if event["event"] == "replay_restored"]
    assert [event["role"] for event in restored] == ["replay_server[0]", "replay_server[1]"]
    assert all(event["rows"] > 0 and event["torn_bytes"] == 0 for event in restored)


@pytest.mark.parametrize(("choice", "code", "folders"), [("fail", 2, 1), ("new", 0, 2), ("resume", 0, 1)])
def test_what_happens_to_a_name_that_is_taken_is_chosen(choice: str, code: int, folders: int, runs: Path) -> None:
    settings = str(runs / "a.toml")

    said = starling("train", settings, "--run", "a", "--runs", str(runs), "--if-exists", choice, "--quiet")

    assert said.code == code
    assert len(list(runs.glob("*/env.json"))) == folders


def test_a_new_run_begins_with_the_networks_of_another_where_they_fit(runs: Path) -> None:
    settings = [str(runs / "a.toml"), "--runs", str(runs), "--init-from", "a"]

    same = starling("train", *settings, "--run", "b", "--total-steps", "32", "--plain")
    other = starling("train", *settings, "--run", "c", "--total-steps", "32", "--plain", "--algorithm.no-dueling")
    none = starling(
        "train", *settings, "--run", "d", "--algorithm.no-dueling", "--algorithm.hidden", "9", "--env.id", "CartPole-v1"
    )

    given, _ = load_checkpoint(runs / "a" / "checkpoints", "best")
    taken, _ = load_checkpoint(runs / "b" / "checkpoints", "latest")  # before its first update
    assert (same.code, other.code, none.code) == (0, 0, 2)
    assert np.array_equal(given.buffer, taken.buffer)
    assert "; at random: " not in same.out
    assert "; at random: q.heads." in other.out
    assert none.err.startswith("starling: run a has no array that fits: it holds q.")
    assert none.err.count("\n") == 1
    assert not (runs / "d").exists()


class FullDisk:
    """Refuses to keep anything while it is full."""

    def __init__(self) -> None:
        self.is_full = False

    def __call__(self, descriptor: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


def due_at(updates: int, events: list[Event]) -> CheckpointDue:
    (due,) = [e for e in events if isinstance(e, CheckpointDue) and e.states and e.updates == updates]
    return due


def test_a_full_disk_is_loud_and_costs_no_checkpoint_that_was_there(tmp_path: Path) -> None:
    config, disk, view = small(), FullDisk(), Warned()
    events = run_until(75, config)
    folder = RunFolder.create(tmp_path, "a", dump(config), {"started": "2026"})
    folder.checkpoints = Checkpoints(folder.path / "checkpoints", disk)
    reporter = Reporter(folder, view, Nothing(), config)

    reporter(due_at(15, events))
    disk.is_full = True
    reporter(due_at(30, events))

    assert not reporter.is_saved
    assert view.sentences == ["checkpoint of update 30 NOT saved: No space left on device; the next one tries again"]
    assert rows(folder.path, "events.jsonl")[-1]["event"] == "checkpoint_failed"
    assert start_of(load_to_resume(folder.path / "checkpoints")).past.updates == 15
    disk.is_full = False
    reporter(due_at(45, events))
    assert reporter.is_saved
    assert start_of(load_to_resume(folder.path / "checkpoints")).past.updates == 45
    folder.close()


def test_a_best_checkpoint_that_was_refused_is_saved_with_the_next_one(tmp_path: Path) -> None:
    config, disk = small(), FullDisk()
    events = run_until(75, config)
    best = [event for event in events if isinstance(event, CheckpointDue) and not event.states][-1]
    folder = RunFolder.create(tmp_path, "a", dump(config), {"started": "2026"})
    folder.checkpoints = Checkpoints(folder.path / "checkpoints", disk)
    reporter = Reporter(folder, Warned(), Nothing(), config)

    disk.is_full = True
    reporter(best)
    disk.is_full = False
    reporter(due_at(30, events))

    assert reporter.is_saved
    assert load_checkpoint(folder.path / "checkpoints", "best")[1]["mean"] == best.mean
    folder.close()


def test_only_a_last_checkpoint_that_is_not_saved_makes_the_exit_code_an_error(runs: Path) -> None:
    (runs / "a" / "checkpoints").rename(runs / "kept")
    (runs / "b.toml").write_text(dump(small(checkpoint__every=0)))
    blocked = runs / "b" / "checkpoints"

    def engine(config: Config[Any], report: Any, stopped: Any) -> Outcome:
        blocked.write_text("a file where the folder should be")
        return run_local(config, report, stopped)

    from cluster.commands import train

    out = io.StringIO()
    with redirect_stdout(out):
        args = [str(runs / "b.toml"), "--run", "b", "--runs", str(runs), "--plain", "--total-steps", "1300"]
        code = train.main(args, engine)

    assert code == 1
    assert "NOT saved" in out.getvalue()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back what a run has put in the place of the signals' handlers."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_leaves_a_checkpoint_and_the_code_130(runs: Path) -> None:
    def engine(config: Config[Any], report: Any, stopped: Any) -> Outcome:
        turns = iter(range(60))

        def asked() -> bool:
            if next(turns, None) is None:
                signal.raise_signal(signal.SIGTERM)
            return bool(stopped())

        return run_local(config, report, asked)

    from cluster.commands import train

    args = [str(runs / "a.toml"), "--run", "s", "--runs", str(runs), "--quiet", "--checkpoint.every", "0"]

    assert train.main(args, engine) == 130
    assert resume(runs, "--quiet", run="s").code == 0
