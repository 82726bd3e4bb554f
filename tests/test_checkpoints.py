import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.checkpoints import (
    Checkpoint,
    Checkpoints,
    load_checkpoint,
    load_to_resume,
    newest_usable,
    sealed,
)
from starling.errors import RunError
from starling.params import Params
from starling.state import State

MUTATIONS = int(os.environ.get("STARLING_MUTATIONS", "300"))


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


def facts(updates: int, **more: Any) -> dict[str, Any]:
    return {"version": 1, "updates": updates, "env_steps": 10 * updates, **more}


def best_of(value: float, updates: int, **more: Any) -> Checkpoint:
    return Checkpoint(params=params_of(value), facts=facts(updates, **more))


def whole_of(value: float, updates: int) -> Checkpoint:
    """Return a checkpoint that a run can go on from."""
    params = params_of(value)
    nets = {f"nets/networks/{name}": array for name, array in params.arrays().items()}
    states = {
        "learner[0]": State({**nets, "nets/targets/target": params.buffer}, {"updates": updates, "nets": {}}),
        "replay_server[0]": State(meta={"origin": 0, "snapshot": f"{updates:06d}-ab", "sha256": "cd"}),
        "replay_server[1]": State(meta={"origin": 3}),
        "evaluator[0]": State(meta={"best_mean": float("-inf")}),
    }
    return Checkpoint(params=params, facts=facts(updates, number=updates), states=states)


def assert_same(found: Checkpoint, saved: Checkpoint) -> None:
    assert np.array_equal(found.params.buffer, saved.params.buffer)
    assert {name: found.facts[name] for name in saved.facts} == saved.facts
    assert found.states.keys() == saved.states.keys()
    for name, state in saved.states.items():
        assert found.states[name].meta == state.meta
        assert found.states[name].arrays.keys() == state.arrays.keys()
        assert all(np.array_equal(found.states[name].arrays[key], array) for key, array in state.arrays.items())


def test_all_roles_come_back_as_they_were_saved(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path / "checkpoints").save(whole_of(2.0, 7))

    found = load_to_resume(tmp_path / "checkpoints")

    assert_same(found, whole_of(2.0, 7))
    assert {file.name for file in path.iterdir()} == {
        "manifest.json",
        "params.safetensors",
        "learner.safetensors",
        "roles.codec",
    }


def test_best_stays_where_it_is_while_latest_goes_on(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    checkpoints.save(whole_of(1.0, 1), best=True)
    checkpoints.save(whole_of(2.0, 2))

    assert load_checkpoint(tmp_path / "checkpoints", "best")[1]["updates"] == 1
    assert load_checkpoint(tmp_path / "checkpoints", "latest")[1]["updates"] == 2


def test_parameters_alone_may_be_best_but_never_latest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    checkpoints.save(whole_of(1.0, 1))
    checkpoints.save(best_of(2.0, 2), best=True)

    assert load_checkpoint(tmp_path / "checkpoints", "best")[1]["updates"] == 2
    assert load_to_resume(tmp_path / "checkpoints").facts["updates"] == 1
    with pytest.raises(RunError, match="holds parameters alone: a run cannot go on from it"):
        load_to_resume(tmp_path / "checkpoints", "step-2")


def test_best_does_not_go_back_when_a_resumed_run_has_forgotten_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    for value, mean in ((1.0, 450.0), (2.0, 480.0), (3.0, 460.0)):
        checkpoints.save(best_of(value, int(value), mean=mean), best=True)

    assert load_checkpoint(tmp_path / "checkpoints", "best")[1]["mean"] == 480.0


def test_the_same_parameters_are_kept_once_and_others_at_the_same_count_beside_them(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    paths = [checkpoints.save(best_of(value, 5), best=value == 1.0) for value in (1.0, 1.0, 2.0)]

    assert [path.name for path in paths] == ["step-5", "step-5", "step-5.1"]
    assert load_checkpoint(tmp_path / "checkpoints", "best")[0].buffer[0] == 1.0


def test_the_newest_the_best_and_nothing_else_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / ".step-9").mkdir(parents=True)  # of a process that died

    checkpoints.save(best_of(0.5, 1, mean=1.0), best=True)
    checkpoints.save(best_of(1.0, 2, mean=2.0), best=True)
    for updates in (3, 40, 5, 6):
        checkpoints.save(whole_of(2.0, updates))
    checkpoints.prune(keep=2)

    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["BEST", "LATEST", "step-2", "step-5", "step-6"]


@pytest.mark.parametrize("after", range(10))
def test_when_the_power_goes_the_pointers_name_something_whole(after: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    Checkpoints(path).save(whole_of(1.0, 1), best=True)

    with pytest.raises(OSError, match="power"):
        Checkpoints(path, PowerCut(after)).save(whole_of(2.0, 2), best=True)

    values = {load_to_resume(path).params.buffer[0], load_checkpoint(path, "best")[0].buffer[0]}
    assert values <= {1.0, 2.0}
    Checkpoints(path).save(whole_of(2.0, 2), best=True)
    assert_same(load_to_resume(path), whole_of(2.0, 2))


def flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


MUTATE: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "a bit": flipped,
    "another byte": lambda data, rng: data[: (at := rng.randrange(len(data)))] + rng.randbytes(1) + data[at + 1 :],
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "emptied": lambda data, rng: b"",
    "longer": lambda data, rng: data + rng.randbytes(rng.randint(1, 9)),
    "a byte more": lambda data, rng: data[: (at := rng.randrange(len(data)))] + rng.randbytes(1) + data[at:],
    "zeros": lambda data, rng: data[: (at := rng.randrange(len(data)))] + bytes(len(data) - at),
    "gone": lambda data, rng: None,
}


def refusal(path: Path) -> str:
    """Return why the latest checkpoint is refused, or nothing if it is loaded."""
    try:
        load_to_resume(path)
    except RunError as error:
        return str(error)
    return ""


def test_no_mutation_of_a_checkpoint_is_ever_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    Checkpoints(path).save(whole_of(1.0, 20))
    Checkpoints(path).save(whole_of(2.0, 30))  # in its name one bit away from the other
    files = [path / "LATEST", *sorted((path / "step-30").iterdir())]
    rng = random.Random(0)
    silent: list[tuple[str, str, str]] = []
    refused = 0

    for _ in range(MUTATIONS):
        file, (kind, mutate) = rng.choice(files), rng.choice(list(MUTATE.items()))
        data = file.read_bytes()
        mutated = mutate(data, rng)
        if mutated == data:
            continue
        if mutated is None:
            file.unlink()
        else:
            file.write_bytes(mutated)
        said = refusal(path)
        file.write_bytes(data)
        refused += 1
        newest = "step-30" if file.name == "LATEST" else "step-20"
        if f"the newest usable checkpoint is {newest}" not in said or "\n" in said:
            silent.append((file.name, kind, said))

    assert silent == []
    assert refused > 0.9 * MUTATIONS
    assert_same(load_to_resume(path), whole_of(2.0, 30))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("step-1/manifest.json", b"{", r"step-1/manifest\.json is damaged: it is not JSON"),
        ("step-1/manifest.json", b"[]", "is damaged: it is not a table"),
        ("step-1/manifest.json", b"[" * 100_000, "is damaged: it is not JSON"),
        ("step-1/manifest.json", b'{"schema": 99}', "step-1 has schema 99, and this Starling reads 1 and 2"),
        ("step-1/params.safetensors", b"", r"step-1/params\.safetensors is damaged: its sha256 is not the one in the"),
        ("step-1/roles.codec", None, r"step-1/roles\.codec cannot be read: No such file"),
        ("LATEST", b"../../etc", r"LATEST must name a checkpoint, got '\.\./\.\./etc'"),
        ("LATEST", b"step-9", r"step-9/manifest\.json cannot be read: No such file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    file: str, content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints"
    Checkpoints(path).save(whole_of(1.0, 1))

    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content)

    with pytest.raises(RunError, match=sentence):
        load_to_resume(path)


def test_without_a_usable_checkpoint_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    (Checkpoints(path).save(whole_of(1.0, 1)) / "roles.codec").write_bytes(b"")

    assert newest_usable(path) is None
    with pytest.raises(RunError, match=r"no checkpoint of this run is usable$"):
        load_to_resume(path)


def test_the_snapshots_on_which_checkpoints_stand_are_known_by_name(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for updates in (1, 2, 3):
        checkpoints.save(whole_of(1.0, updates))
    checkpoints.save(best_of(1.0, 4), best=True)

    checkpoints.prune(keep=2)

    assert checkpoints.snapshots() == {"000002-ab", "000003-ab"}


def test_a_checkpoint_that_stands_on_nothing_is_refused_for_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    for updates in (1, 2):
        Checkpoints(path).save(whole_of(1.0, updates))

    def require(states: Mapping[str, State]) -> None:
        if states["learner[0]"].meta["updates"] == 2:
            raise RunError("its snapshot is gone")

    with pytest.raises(RunError, match="its snapshot is gone; the newest usable checkpoint is step-1: --at step-1"):
        load_to_resume(path, require=require)


def test_a_checkpoint_under_anothers_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    made = Checkpoints(path).save(whole_of(1.0, 1))

    shutil.copytree(made, path / "step-2")

    with pytest.raises(RunError, match="step-2 is not where it was written: its manifest is of 'step-1'"):
        load_to_resume(path, "step-2")


def test_a_layout_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    manifest = Checkpoints(path).save(best_of(1.0, 1), best=True) / "manifest.json"

    table = {**json.loads(manifest.read_text()), "layout": [["q.weight", [9, 9]]]}
    del table["seal"]
    manifest.write_bytes(sealed(table))
    (path / "BEST").write_text(f"step-1 {json.loads(manifest.read_text())['seal']}\n")

    with pytest.raises(RunError, match="do not have the layout"):
        load_checkpoint(path, "best")
