import json
import os
from pathlib import Path

import numpy as np
import pytest

from cluster.checkpoints import Checkpoint
from cluster.rows import Rows
from cluster.run_folder import Run, RunFolder, find_run, find_runs, free_name, load_params
from starling.errors import ConfigError, RunError
from starling.params import Params


def params_of(value: float) -> Params:
    return Params.of({"q.weight": np.full((3, 2), value, np.float32), "q.bias": np.full(2, value, np.float32)})


def folder_at(runs: Path, name: str = "a", started: str = "2026-01-01") -> RunFolder:
    return RunFolder.create(runs, name, "seed = 0\n", {"started": started})


def test_parameters_come_back_as_they_were_saved(tmp_path: Path) -> None:
    facts = {"version": 1, "updates": 7, "env_steps": 70}
    with folder_at(tmp_path) as folder:
        folder.checkpoints.save(Checkpoint(params=params_of(1.0), facts=facts), best=True)

    params, manifest = load_params(Run(tmp_path / "a"))

    assert params.layout == params_of(1.0).layout
    assert np.array_equal(params.buffer, params_of(1.0).buffer)
    assert {name: manifest[name] for name in facts} == facts


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    folder_at(tmp_path).close()

    with pytest.raises(RunError, match=r"^run a has no best checkpoint yet$"):
        load_params(Run(tmp_path / "a"))


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    folder_at(tmp_path).close()

    with pytest.raises(ConfigError, match=r"^run must be a new name, got a, which .* already holds$"):
        folder_at(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\0", "latest", " a", "-a", "x" * 101])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^run must be a name of letters"):
        folder_at(tmp_path / "runs", name)

    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match="cannot be made"):
        folder_at(tmp_path / "file")


def test_a_run_is_live_while_its_lock_is_held_and_names_its_owner(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    run = Run(tmp_path / "a")

    assert run.is_live()
    assert run.state() == "running"
    assert (run.path / "run.lock").read_text().strip() == str(os.getpid())
    folder.close()
    assert not run.is_live()
    assert run.state() == "killed"


def test_free_names_go_on_after_the_largest_number(tmp_path: Path) -> None:
    assert free_name(tmp_path / "none", "cartpole") == "cartpole-01"

    for name in ("cartpole-01", "cartpole-07", "cartpole-x", "other-99"):
        (tmp_path / name).mkdir()

    assert free_name(tmp_path, "cartpole") == "cartpole-08"


def test_latest_is_the_run_that_was_started_last(tmp_path: Path) -> None:
    for name, started in (("b", "2026-01-03"), ("a", "2026-01-02"), ("c", "2026-01-01")):
        folder_at(tmp_path, name, started).close()

    assert [run.name for run in find_runs(tmp_path)] == ["c", "a", "b"]
    assert find_run(tmp_path, "latest").name == "b"
    assert find_run(tmp_path, str(tmp_path / "c")).name == "c"


def test_an_unknown_run_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    folder_at(tmp_path, "cartpole-01").close()

    with pytest.raises(RunError, match=r"run 'cartpol-01' is not in .*; did you mean cartpole-01\?$"):
        find_run(tmp_path, "cartpol-01")


def test_rows_are_appended_and_what_json_cannot_say_is_null(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        folder.add_metrics({"rate": float("nan"), "steps": np.int64(3), "roles": {"a": [np.float32(0.5)]}})
        folder.add_metrics({"steps": 4})
        folder.add_episodes([(1.0, 100, 0, 21.0, 21)])

    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"rate": None, "steps": 3, "roles": {"a": [0.5]}}, {"steps": 4}]
    episodes = (tmp_path / "a" / "episodes.csv").read_text().splitlines()
    assert episodes == ["elapsed_s,env_steps,actor,return,length", "1.0,100,0,21.0,21"]


def test_half_a_row_of_a_killed_writer_is_not_read(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        folder.add_metrics({"steps": 1})
    path = tmp_path / "a" / "metrics.jsonl"

    path.write_text(path.read_text() + '{"ste')

    assert Run(tmp_path / "a").last("metrics.jsonl") == {"steps": 1}
    assert Run(tmp_path / "a").last("events.jsonl") == {}


def test_half_a_row_is_cut_off_before_the_next_one_is_written(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"a": 1}\n{"a": 2')

    rows = Rows(tmp_path / "rows")
    rows.add('{"a": 3}\n')
    rows.close()

    assert (tmp_path / "rows").read_text() == '{"a": 1}\n{"a": 3}\n'


class FullDisk:
    """Takes so many bytes, and no more until there is room again."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, descriptor: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written = os.write(descriptor, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 5, 6, 20])
def test_rows_wait_for_room_and_none_is_torn(room: int, tmp_path: Path) -> None:
    disk = FullDisk(room)
    rows = Rows(tmp_path / "rows", disk)

    for row in range(10):
        rows.add(f"row {row}\n")
    disk.room = 10**6
    rows.close()

    assert (tmp_path / "rows").read_text() == "".join(f"row {row}\n" for row in range(10))


def test_of_more_rows_than_can_wait_the_newest_do(tmp_path: Path) -> None:
    disk = FullDisk(3)
    rows = Rows(tmp_path / "rows", disk)

    for row in range(200):
        rows.add(f"{row:09999d}\n")
    disk.room = 10**9
    rows.close()

    lines = (tmp_path / "rows").read_text().splitlines()
    assert {len(line) for line in lines} == {9999}
    assert [int(line[-4:]) for line in lines] == [0, *range(200 - len(lines) + 1, 200)]
