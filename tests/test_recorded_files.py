from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.copies import EnvConfig
from actors.envs import measure
from cluster.inbox import write_segment
from cluster.recorded_files import episode_arrays, left_out, minari_arrays, recorded, stem_of_data, wanted_by
from starling.errors import DataError, RunError
from starling.recorded import FIRST_ACTOR
from starling.recordings import Wanted, read_steps
from starling.types import Columns
from tests.replay_worlds import CountingWorld


@pytest.fixture
def wanted() -> Wanted:
    config = EnvConfig(id="tests.screens:Still")
    return wanted_by(config, measure(config))


def episode(steps: int, terminated: bool = False, truncated: bool = False, start: float = 0.0) -> Any:
    flags = np.zeros((2, steps), bool)
    flags[:, -1] = terminated, truncated
    return SimpleNamespace(
        observations=start + np.arange(2.0 * (steps + 1)).reshape(-1, 2),
        actions=np.arange(steps) % 2,
        rewards=np.ones(steps),
        terminations=flags[0],
        truncations=flags[1],
    )


class DataSet:
    def __init__(self, episodes: list[Any]) -> None:
        self._episodes = episodes

    def iterate_episodes(self) -> Iterator[Any]:
        return iter(self._episodes)


class Minari:
    """As much of the package as is used."""

    def __init__(self, **sets: DataSet) -> None:
        self._sets = sets

    def load_dataset(self, name: str) -> DataSet:
        if name not in self._sets:
            raise FileNotFoundError(f"Dataset {name} not found locally.\nsecond line")
        return self._sets[name]


def test_an_episode_that_just_stops_was_truncated_there(wanted: Wanted) -> None:
    arrays = episode_arrays([episode(3, terminated=True), episode(2, truncated=True), episode(4)])

    steps = read_steps(arrays, wanted, "minari:x")

    assert steps.columns["terminated"].tolist() == [False, False, True] + 6 * [False]
    assert np.flatnonzero(steps.columns["truncated"]).tolist() == [4, 8]
    assert steps.final_obs.tolist() == [[6.0, 7.0], [4.0, 5.0], [8.0, 9.0]]
    assert steps.columns["age"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]


def test_a_minari_data_set_is_read_as_any_recording(wanted: Wanted) -> None:
    package = Minari(small=DataSet([episode(3, terminated=True)]))

    assert len(read_steps(minari_arrays("small", package), wanted, "minari:small").begins) == 3


def test_a_minari_data_set_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"minari:none cannot be read: FileNotFoundError: Dataset none not found local"):
        minari_arrays("none", Minari())


def test_without_minari_it_says_what_to_install(wanted: Wanted) -> None:
    try:
        import minari  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(DataError, match="minari:x needs the package minari, which is not installed here; pip inst"):
            recorded("minari:x", wanted)
    else:
        pytest.skip("minari is installed")


def arrays(**more: Any) -> Columns:
    obs = np.arange(8, dtype=np.float32).reshape(4, 2)
    end = np.array([False, False, False, True])
    return {"obs": obs, "action": np.zeros(4, int), "reward": np.ones(4), "terminated": end, **more}


def test_an_npz_file_is_read_and_what_it_has_beside_is_named(tmp_path: Path, wanted: Wanted) -> None:
    path = str(tmp_path / "data.npz")
    np.savez(path, **arrays(qpos=np.zeros(4), name=np.array("x")))

    (unroll,) = recorded(path, wanted)

    assert unroll.actor == FIRST_ACTOR
    assert unroll.columns["obs"][:, 0].tolist() == arrays()["obs"].tolist()
    assert left_out(path, wanted) == ["name", "qpos"]


def test_objects_are_never_loaded(tmp_path: Path, wanted: Wanted) -> None:
    path = str(tmp_path / "data.npz")
    np.savez(path, **arrays(reward=np.array([1.0, None, 2.0, 3.0], object)))

    with pytest.raises(
        DataError, match="reward must be an array of numbers, got Python objects, which are never loaded"
    ):
        recorded(path, wanted)


def numbers(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_bytes(b"no zip"), "must be an .npz file of numpy's, and is none"),
        (lambda path: path.write_bytes(b"PK\x03\x04no zip"), "must be an .npz file of numpy's, and is none"),
        (numbers, "must be an .npz file of numpy's, got a single array"),
        (lambda path: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "cannot be read: Is a directory"),
    ],
)
def test_a_file_that_is_no_npz_is_one_sentence(tmp_path: Path, wanted: Wanted, write: Any, sentence: str) -> None:
    path = tmp_path / "data.npz"
    write(path)

    with pytest.raises(DataError) as refusal:
        recorded(str(path), wanted)

    assert str(refusal.value) == f"{path} {sentence}"


def test_other_files_are_refused(wanted: Wanted) -> None:
    with pytest.raises(
        DataError, match=r"recorded data must be a file ending in .npz or .seg, or minari:DATASET-ID, got"
    ):
        recorded("data.csv", wanted)


def segment(path: Path, **changes: Any) -> str:
    unroll = CountingWorld(np.random.default_rng(1), actor=3).unroll(6)
    for name, value in changes.items():
        unroll.columns[name][0, 0] = value
    write_segment(path, [unroll])
    return str(path)


def test_a_segment_is_read_as_unrolls_of_nobodys(tmp_path: Path, wanted: Wanted) -> None:
    (unroll,) = recorded(segment(tmp_path / "data.seg"), wanted)

    assert unroll.actor == FIRST_ACTOR
    assert not unroll.columns["version"].any()
    assert unroll.columns["acted"].shape == (6, 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"action": 2}, "unroll 0: action must be one of the 2 of tests.screens:Still, got 2"),
        ({"reward": np.nan}, "unroll 0: reward must be finite, got values that are not"),
    ],
)
def test_steps_of_another_environment_are_refused(
    tmp_path: Path, wanted: Wanted, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        list(recorded(segment(tmp_path / "data.seg", **changes), wanted))


def test_a_segment_that_was_cut_is_refused(tmp_path: Path, wanted: Wanted) -> None:
    path = segment(tmp_path / "data.seg")
    Path(path).write_bytes(Path(path).read_bytes()[:-1])

    with pytest.raises(DataError, match=r"is damaged: its last .* bytes are no whole record"):
        list(recorded(path, wanted))


def test_a_segment_that_is_not_there_is_one_sentence(tmp_path: Path, wanted: Wanted) -> None:
    with pytest.raises(RunError, match="cannot be read: No such file or directory"):
        list(recorded(str(tmp_path / "data.seg"), wanted))


@pytest.mark.parametrize(
    ("source", "stem"), [("a/b c.npz", "b-c"), ("minari:D4RL/door/human-v2", "D4RL-door-human-v2"), ("/.seg", "seg")]
)
def test_files_are_named_after_what_they_were_made_of(source: str, stem: str) -> None:
    assert stem_of_data(source) == stem
