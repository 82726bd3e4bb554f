import json
import os
from pathlib import Path

import numpy as np
import pytest

from cluster.checkpoints import Checkpoints, load_checkpoint
from cluster.run_folder import Run, RunFolder, find_run, find_runs, free_name, load_params
from starling.errors import ConfigError, RunError
from starling.params import Params


class PowerCut:
    """Lets so many syncs pass, and then the power goes."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, descriptor: int) -> None:
        if self.left == 0:
            raise OSError("power")
        self.left -= 1


def params_of(value: float) -> Params:
    return Params.of({"q.weight": np.full((3, 2), value, np.float32), "q.bias": np.full(2, value, np.float32)})


def folder_at(runs: Path, name: str = "a", started: str = "2026-01-01") -> RunFolder:
    return RunFolder.create(runs, name, "seed = 0\n", {"started": started})


def facts(updates: int) -> dict[str, int]:
    return {"version": 1, "updates": updates, "env_steps": 10 * updates}


def test_parameters_come_back_as_they_were_saved(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        folder.checkpoints.save(params_of(1.0), facts(7), best=True)

    params, manifest = load_params(Run(tmp_path / "a"))

    assert params.layout == params_of(1.0).layout
    assert np.array_equal(params.buffer, params_of(1.0).buffer)
    assert (manifest["version"], manifest["updates"], manifest["env_steps"]) == (1, 7, 70)


def test_best_stays_where_it_is_while_latest_goes_on(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    checkpoints.save(params_of(1.0), facts(1), best=True)
    checkpoints.save(params_of(2.0), facts(2))

    assert load_checkpoint(tmp_path / "checkpoints", "best")[1]["updates"] == 1
    assert load_checkpoint(tmp_path / "checkpoints", "latest")[1]["updates"] == 2


def test_the_same_parameters_are_kept_once_and_others_at_the_same_count_beside_them(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    paths = [checkpoints.save(params_of(value), facts(5), best=value == 1.0) for value in (1.0, 1.0, 2.0)]

    assert [path.name for path in paths] == ["step-5", "step-5", "step-5.1"]
    assert load_checkpoint(tmp_path / "checkpoints", "best")[0].buffer[0] == 1.0
    assert load_checkpoint(tmp_path / "checkpoints", "latest")[0].buffer[0] == 2.0


@pytest.mark.parametrize("after", range(8))
def test_when_the_power_goes_the_pointers_name_something_whole(after: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    Checkpoints(path).save(params_of(1.0), facts(1), best=True)

    with pytest.raises(OSError, match="power"):
        Checkpoints(path, PowerCut(after)).save(params_of(2.0), facts(2), best=True)

    values = {load_checkpoint(path, "latest")[0].buffer[0], load_checkpoint(path, "best")[0].buffer[0]}
    assert values <= {1.0, 2.0}
    Checkpoints(path).save(params_of(2.0), facts(2), best=True)
    assert load_checkpoint(path, "best")[0].buffer[0] == 2.0


def test_no_flipped_bit_is_ever_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    whole = Checkpoints(path).save(params_of(1.0), facts(1), best=True) / "params.safetensors"
    data = whole.read_bytes()

    for place in range(len(data)):
        whole.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(RunError, match=r"params\.safetensors is damaged"):
            load_checkpoint(path, "best")


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("step-1/manifest.json", "{", "is damaged: it is not JSON"),
        ("step-1/manifest.json", "[]", "is damaged: it is not a table"),
        ("step-1/manifest.json", '{"schema": 99}', "has schema 99, and this Starling reads 1"),
        ("BEST", "../../etc", "must name a checkpoint, got '../../etc'"),
        ("BEST", "step-9", r"step-9/manifest\.json cannot be read: No such file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(file: str, content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    Checkpoints(path).save(params_of(1.0), facts(1), best=True)

    (path / file).write_text(content)

    with pytest.raises(RunError, match=sentence):
        load_checkpoint(path, "best")


def test_a_layout_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    manifest = Checkpoints(path).save(params_of(1.0), facts(1), best=True) / "manifest.json"

    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "layout": [["q.weight", [9, 9]]]}))

    with pytest.raises(RunError, match="do not have the layout"):
        load_checkpoint(path, "best")


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
