import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.png import png
from cluster.replay_view import Held, Layout, shards_in
from cluster.roles import build_algorithm
from cluster.run_folder import Run, RunFolder
from replay_server.segments import read_records
from replay_server.shard import ReplayShard
from replay_server.storage import Storage
from starling import wire
from starling.types import Unroll, spread
from tests.replay_runs import run_with, settings, shard_of
from tests.replay_worlds import SPEC, CountingWorld
from tests.test_cli import Said, starling

LIMITS = {"replay__capacity": "130", "replay__min_windows": "50", "actor__unroll_length": "2"}


def played(count: int = 6, actor: int = 0, seed: int = 0, length: int = 10, priorities: bool = True) -> list[Unroll]:
    """Return what an actor sends, all windows of an unroll with a priority of its own."""
    world = CountingWorld(np.random.default_rng(seed), actor=actor)
    sent = [world.unroll(length) for _ in range(count)]
    if not priorities:
        return sent
    return [
        replace(unroll, priorities=np.full((length + 3, 2), 1.0 + at, np.float32)) for at, unroll in enumerate(sent)
    ]


def replay(runs: Path, *args: str) -> Said:
    return starling("replay", *args, "--runs", str(runs))


def shard_with(sent: Sequence[Unroll], **config: Any) -> ReplayShard:

    own = settings(**config)
    algorithm = build_algorithm(own)
    shard = ReplayShard(own.replay, SPEC, algorithm.window, {}, np.random.default_rng(0), lambda: 0.0)
    for unroll in sent:
        shard.insert(unroll)
    return shard


def windows_of(shard: ReplayShard) -> list[bytes]:
    """Return every window that could be drawn, but for its version and its place."""
    index = shard.index()
    storage: Storage = shard._storage
    slots = storage.slots(index.meta["first"] + np.flatnonzero(index.arrays["masses"]))
    columns = spread(storage.gather(slots))
    names = sorted(set(columns) - {"version"})
    return sorted(b"".join(columns[name][:, at].tobytes() for name in names) for at in range(len(slots)))


def imported(path: Path) -> list[Unroll]:
    """Return the unrolls that lie in a run's inbox."""

    files = sorted((path / "replay" / "inbox").glob("*.seg"))
    return [wire.decode_unroll(record.unroll) for file in files for record in read_records(file)]


def test_a_shard_is_described_by_what_it_holds(tmp_path: Path) -> None:
    sent = played()
    run_with(tmp_path, sent, snapshot="step-40")
    shard = shard_with(sent)
    windows = int(np.count_nonzero(shard.index().arrays["masses"]))

    said = replay(tmp_path, "r")

    lines = said.out.splitlines()
    assert said.code == 0, said.err
    assert lines[0].startswith(f"shard 0  {shard.rows[1]} of 5,000 rows (2%) · {windows} windows · ")
    assert lines[1] == "  versions    1 to 6"
    assert "as of checkpoint step-40" in said.out
    assert "█" not in said.out  # it is no terminal


def test_its_windows_are_the_shards_own(tmp_path: Path) -> None:
    sent = [unroll for pair in zip(played(actor=0), played(actor=1, seed=1), strict=True) for unroll in pair]
    path = run_with(tmp_path, sent, **LIMITS)
    shard = shard_with(sent, **LIMITS)
    index = shard.index()
    columns = spread(shard._storage.gather(shard._storage.slots(np.arange(*shard.rows))))

    held = Held(
        shards_in(path / "replay")[0],
        Layout.of(settings(**LIMITS)),
    )
    shown = list(held.windows("oldest", 10_000))

    assert (held.oldest, held.end) == shard.rows
    assert [window.row for window in shown] == (index.meta["first"] + np.flatnonzero(index.arrays["masses"])).tolist()
    assert len(shown) > 50
    for window in shown:
        at = window.row - held.oldest
        steps = int(columns["valid"][:, at].sum())
        assert window.actions == columns["action"][:steps, at].tolist()
        assert window.rewards == columns["reward"][:steps, at].tolist()
        ends = {"terminated": columns["terminated"][:, at].any(), "truncated": columns["truncated"][:, at].any()}
        assert window.ended == next((name for name, ended in ends.items() if ended), "")
        assert window.priority == pytest.approx(index.arrays["masses"][at] - 1e-6)


@pytest.mark.parametrize(("order", "first"), [("newest", "6"), ("highest", "6"), ("oldest", "1")])
def test_windows_come_in_the_order_that_is_asked_for(tmp_path: Path, order: str, first: str) -> None:
    run_with(tmp_path, played(priorities=True))

    said = replay(tmp_path, "r", "--windows", order, "--count", "3")

    lines = said.out.splitlines()
    assert said.code == 0, said.err
    assert "as the actors gave them: there is no checkpoint yet" in said.out
    assert lines[-4].split() == ["row", "actor", "copy", "age", "version", "priority", "sampled", "action:reward"]
    assert lines[-3].split()[5] == first  # the priority of the unroll that completed it


def test_json_says_the_same(tmp_path: Path) -> None:
    gauges = {"rows": 7.0, "capacity": 5000.0}
    row = {"roles": {"replay_server[0]": {"gauges": gauges}}}
    run_with(tmp_path, played(), played(actor=1), snapshot="step-40", rows=[row])

    said = replay(tmp_path, "r", "--json", "--windows", "newest", "--count", "2")

    shards = [json.loads(line) for line in said.out.splitlines()]
    assert [shard["shard"] for shard in shards] == [0, 1]
    assert shards[0]["live"] == gauges
    assert shards[0]["as_of"] == "step-40"
    assert len(shards[0]["list"]) == 2
    assert shards[0]["segments"][0]["file"] == "0000000000000000.seg"


def test_one_shard_can_be_asked_for(tmp_path: Path) -> None:
    run_with(tmp_path, played(), played(actor=1))

    said = replay(tmp_path, "r", "--shard", "1")

    assert [line.split()[:2] for line in said.out.splitlines() if line.startswith("shard")] == [["shard", "1"]]


def test_without_a_log_there_are_figures_only(tmp_path: Path) -> None:
    row = {"roles": {"replay_server[0]": {"gauges": {"rows": 1234.0, "capacity": 5000.0, "windows": 1200.0}}}}
    run_with(tmp_path, rows=[row], replay__durability="none")

    said = replay(tmp_path, "r")
    asked = replay(tmp_path, "r", "--windows", "newest")

    assert said.out.splitlines() == [
        "shard 0  1,234 of 5,000 rows · 1,200 windows",
        "the contents of r are not on the disk (replay.durability is none); these are the figures of its last second",
    ]
    assert (asked.code, asked.out) == (2, "")
    assert asked.err.startswith("starling: windows must be on the disk to be shown, and the contents of r are not on")


def test_pictures_are_drawn_and_other_observations_are_not(tmp_path: Path) -> None:
    run_with(tmp_path, played())
    refused = replay(tmp_path, "r", "--frames", str(tmp_path / "out.png"))
    screens = [
        replace(unroll, columns=unroll.columns | {"obs": np.zeros((10, 2, 6, 4), np.uint8)}) for unroll in played()
    ]
    screens = [replace(unroll, final_obs=np.full((len(unroll.final_at), 6, 4), 255, np.uint8)) for unroll in screens]
    run_with(tmp_path, screens, name="s", env__id="tests.screens:Screen")

    drawn = replay(tmp_path, "s", "--frames", str(tmp_path / "out.png"), "--count", "5")

    assert refused.err == (
        "starling: frames must be pictures, and tests.screens:Still has observations of float32 (2,)\n"
    )
    assert drawn.code == 0, drawn.err
    content = (tmp_path / "out.png").read_bytes()
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert content.startswith(b"\x89PNG")
    assert height == 2 + 5 * (6 + 2)
    assert width in (2 + columns * (4 + 2) for columns in (2, 3, 4))


def test_a_picture_is_read_back_by_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 3)):
        pixels = rng.integers(256, size=shape, dtype=np.uint8)
        (tmp_path / "x.png").write_bytes(png(pixels))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels)


@pytest.mark.parametrize("suffix", [".npz", ".seg"])
def test_what_is_exported_and_imported_makes_the_same_windows(tmp_path: Path, suffix: str) -> None:
    sent = [unroll for pair in zip(played(8), played(8, actor=1, seed=1), strict=True) for unroll in pair]
    del sent[5]  # lost on its way: a stream is cut
    run_with(tmp_path, sent, **LIMITS)
    target = run_with(tmp_path, name="target", **LIMITS)
    file = str(tmp_path / f"data{suffix}")

    exported = replay(tmp_path, "export", "r", "--out", file)
    brought = replay(tmp_path, "import", file, "--run", "target")

    assert (exported.code, brought.code) == (0, 0), exported.err + brought.err
    assert windows_of(shard_with(imported(target), **LIMITS | {"replay__capacity": "1000"})) == windows_of(
        shard_with(sent, **LIMITS)
    )


def test_an_export_is_in_the_environments_own_terms(tmp_path: Path) -> None:
    sent = played(3)
    run_with(tmp_path, sent, played(3, actor=1), env__reward_scale="0.5")

    said = replay(tmp_path, "export", "r", "--out", str(tmp_path / "data.npz"))

    arrays = np.load(tmp_path / "data.npz")
    steps = sum(unroll.num_steps for unroll in sent)
    ends = sum(len(unroll.final_at) for unroll in sent)
    first = sent[0].columns["reward"][:, 0][sent[0].columns["acted"][:, 0]]
    assert f": {len(arrays['obs']):,} steps" in said.out
    assert np.count_nonzero(arrays["actor"] == 0) == steps
    assert len(arrays["final_obs"]) >= ends
    assert arrays["reward"][: len(first)].tolist() == (2 * first).tolist()
    assert set(arrays["version"]) == {1, 2, 3}
    assert not list(tmp_path.glob(".data*"))


def data(path: Path, steps: int = 5, **more: Any) -> str:
    end = np.arange(steps) == steps - 1
    obs = np.ones((steps, 2))
    np.savez(path, obs=obs, action=np.zeros(steps, int), reward=np.ones(steps), terminals=end, **more)
    return str(path)


def test_data_goes_into_the_latest_run(tmp_path: Path) -> None:
    path = run_with(tmp_path)
    files = [data(tmp_path / "a.npz"), data(tmp_path / "b.npz", 7, qpos=np.zeros(7))]

    said = replay(tmp_path, "import", *files)

    assert said.out.splitlines() == [
        f"{files[0]}  ->  r, taken up when the run goes on: 5 steps, 1 episodes ended",
        f"{files[1]}  ->  r, taken up when the run goes on: 7 steps, 1 episodes ended; left out: qpos",
    ]
    assert [unroll.num_steps for unroll in imported(path)] == [5, 7]


def test_a_live_run_takes_data_up_at_once(tmp_path: Path) -> None:
    path = run_with(tmp_path)

    with RunFolder.reopen(Run(path)):
        said = replay(tmp_path, "import", data(tmp_path / "a.npz"))

    assert "->  r, taken up within a second: 5 steps" in said.out


def test_data_can_be_made_a_segment_without_any_run(tmp_path: Path) -> None:
    out = str(tmp_path / "data.seg")

    said = replay(tmp_path, "import", data(tmp_path / "a.npz"), "--env", "tests.screens:Still", "--out", out)

    assert said.code == 0, said.err
    assert Path(out).exists()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["import"], "replay import must be given FILES before its flags, got nothing"),
        (["import", "bad.npz"], "bad.npz: obs must be of shape (5, 2), got (5, 3)"),
        (["import", "good.npz", "bad.npz"], "bad.npz: obs must be of shape (5, 2), got (5, 3)"),
        (["import", "good.npz", "--run", "q"], "run 'q' is not in RUNS"),
        (["import", "good.npz", "--envv", "x"], "--envv is not a flag; did you mean --env?"),
        (
            ["import", "good.npz", "--env", "tests.screens:More"],
            "env must be like tests.screens:Still, which r learns, with num_actions 2, got tests.screens:More with 3",
        ),
        (["import", "good.npz", "--out", "x.seg"], "env must be given with --out, as no run says it, got nothing"),
        (["import", "good.npz", "--out", "x.npz", "--env", "x"], "out must be a file ending in .seg, got x.npz"),
        (["export", "r", "--out", "x.csv"], "out must be a file ending in .npz or .seg, got x.csv"),
        (["export", "r"], "run r has nothing to export: its replay is not on the disk"),
        (["exprot", "r"], "replay must be given one RUN before its flags, got exprot r; did you mean export?"),
        (["r", "--shard", "1"], "shard must be below 1, got 1"),
        (["r", "--windows", "best"], "windows must be one of newest, highest, oldest"),
        (["r", "--frames", "x.gif"], "frames must be a file ending in .png, got x.gif"),
        ([], "replay must be given one RUN before its flags, got nothing"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], sentence: str
) -> None:
    path = run_with(tmp_path)
    monkeypatch.chdir(tmp_path)
    data(tmp_path / "good.npz")
    np.savez("bad.npz", obs=np.ones((5, 3)), action=np.zeros(5, int), reward=np.ones(5), terminals=np.zeros(5, bool))

    said = replay(tmp_path, *args)

    assert said.code == 2
    assert said.err.startswith(f"starling: {sentence.replace('RUNS', str(tmp_path))}")
    assert said.err.count("\n") == 1
    assert imported(path) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["RUN", "--windows", "--frames", "replay import", "replay export"]),
        (["import"], ["FILES", "--env", "--run", "minari:DATASET-ID"]),
        (["export"], ["RUN", "--out", "--shard", "final_obs"]),
    ],
)
def test_help_says_what_there_is(args: list[str], words: list[str]) -> None:
    said = starling("replay", *args, "--help")

    assert said.code == 0
    assert all(word in " ".join(said.out.split()) for word in words)


@pytest.mark.usefixtures("own_umask", "own_signals")
def test_a_run_begins_with_recorded_data_and_repeats(tmp_path: Path) -> None:
    files = [data(tmp_path / "a.npz", 700), data(tmp_path / "b.npz", 7)]
    flags = ["--env.id", "tests.screens:Still", "--runtime", "local", "--total-steps", "400", "--env.time-limit", "9"]

    said = [
        starling(
            "train", "gridworld", *flags, "--quiet", "--fill", *files, "--runs", str(tmp_path / "runs"), "--run", name
        )
        for name in ("one", "two")
    ]

    runs = [Run(tmp_path / "runs" / name) for name in ("one", "two")]
    events = [[event for event in run.events() if event["event"] == "filled"] for run in runs]
    assert [part.code for part in said] == [0, 0], said[0].err
    assert [(event["file"], event["env_steps"]) for event in events[0]] == [("a-0001.seg", 700), ("b-0001.seg", 7)]
    assert "707 steps of no version" in " ".join(replay(tmp_path / "runs", "one").out.replace("recorded", "").split())
    assert list((runs[0].path / "replay" / "inbox").iterdir()) == []
    ends = [run.last("events.jsonl") for run in runs]
    assert ends[0]["params_sha256"] == ends[1]["params_sha256"]


def test_a_run_does_not_begin_with_data_that_it_could_not_learn_from(tmp_path: Path) -> None:
    file = data(tmp_path / "a.npz", 5)

    said = starling("train", "cartpole", "--fill", file, "--runs", str(tmp_path / "runs"))

    assert said.code == 2
    assert said.err == f"starling: {file}: obs must be of shape (5, 4), got (5, 2)\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.cluster
@pytest.mark.usefixtures("own_umask", "own_signals")
def test_shards_in_processes_of_their_own_take_recorded_data_too(tmp_path: Path) -> None:
    flags = ["--env.id", "tests.screens:Still", "--env.time-limit", "9", "--total-steps", "3000", "--quiet"]
    flags += ["--replay.capacity", "200000"]  # actors overshoot the budget, and must not overwrite what was filled in

    said = starling(
        "train", "gridworld", *flags, "--fill", data(tmp_path / "a.npz", 700), "--runs", str(tmp_path), "--run", "one"
    )

    run = Run(tmp_path / "one")
    filled = [event for event in run.events() if event["event"] == "filled"]
    assert said.code == 0, said.err
    assert [(event["file"], event["env_steps"]) for event in filled] == [("a-0001.seg", 700)]
    assert "700 steps of no version" in " ".join(replay(tmp_path, "one").out.split())


def test_a_snapshot_of_a_future_that_was_given_up_says_nothing_of_what_is_there(tmp_path: Path) -> None:
    run = run_with(tmp_path, played(count=30, seed=1), snapshot="000009-ab")
    rmtree(run / "replay" / "shard-0" / "live")
    shard = shard_of(run, settings(), 0)
    for unroll in played(count=4):
        shard.insert(unroll)
    shard.close()

    held = Held(shards_in(run / "replay")[0], Layout.of(settings()))

    assert (held.oldest, held.end) == shard.rows
    assert held.snapshot is None
