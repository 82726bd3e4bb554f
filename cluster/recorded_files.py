"""Recorded data in files: arrays (.npz), segments of ours (.seg), and Minari's data sets."""

import importlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from actors.copies import EnvConfig
from actors.envs import Measured
from replay_server.segments import SUFFIX, SegmentReader
from replay_server.storage import columns_of
from starling import wire
from starling.config import shown
from starling.errors import CodecError, DataError
from starling.recorded import Foreign, refuse_misfit, refuse_values, unrolls
from starling.recordings import OURS, Wanted, read_steps, unread
from starling.spec import ArraySpec
from starling.types import Array, Columns, Unroll

NPZ, SEGMENT, MINARI = ".npz", SUFFIX, "minari:"
KINDS = f"a file ending in {NPZ} or {SEGMENT}, or {MINARI}DATASET-ID"


def wanted_by(env: EnvConfig, measured: Measured, extras: Mapping[str, ArraySpec] = MappingProxyType({})) -> Wanted:
    """Return what recorded steps of an environment must fit, and what must come with them for an algorithm."""
    spec, spaces = measured
    return Wanted(spec=spec, terms=spaces, learned_reward=env.learned_reward, extras=extras)


def recorded(source: str, wanted: Wanted) -> Iterator[Unroll]:
    """Yield recorded data as unrolls of nobody's; of arrays, everything is checked before the first one."""
    if source.startswith(MINARI):
        return unrolls(read_steps(minari_arrays(source.removeprefix(MINARI)), wanted, source))
    if source.endswith(NPZ):
        return unrolls(read_steps(_npz(Path(source), wanted), wanted, source))
    if source.endswith(SEGMENT):
        return _segment(Path(source), wanted)
    raise DataError(f"recorded data must be {KINDS}, got {shown(source)}")


def check_all(sources: Sequence[str], wanted: Wanted) -> None:
    """Refuse files that could not be learned from, before anything is written."""
    for source in sources:
        for _ in recorded(source, wanted):
            pass


def stem_of_data(source: str) -> str:
    """Return what files made of this data are named after."""
    name = source.removeprefix(MINARI) if source.startswith(MINARI) else Path(source).stem
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "data"


def left_out(source: str, wanted: Wanted) -> list[str]:
    """Return the names of a file's arrays that nothing is read from."""
    if not source.endswith(NPZ):
        return []
    with _opened(Path(source)) as file:
        return unread(file.files, wanted)


def episode_arrays(episodes: Iterable[Any]) -> Columns:
    """Return Minari's episodes as one recording; one that stops without an end was truncated where it stops."""
    parts: dict[str, list[Array]] = {}
    for number, episode in enumerate(episodes):
        obs, steps = np.asarray(episode.observations), len(episode.rewards)
        terminated, truncated = (np.array(flags, np.bool_) for flags in (episode.terminations, episode.truncations))
        truncated[-1:] |= ~terminated[-1:]
        columns = {
            "obs": obs[:-1],
            "final_obs": obs[-1:],
            "action": np.asarray(episode.actions),
            "reward": np.asarray(episode.rewards),
            "terminated": terminated,
            "truncated": truncated,
            "episode": np.full(steps, number),
        }
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def minari_arrays(dataset: str, package: Any = None) -> Columns:
    """Return a data set of Minari's that is on this machine; nothing is downloaded."""
    if package is None:
        if find_spec("minari") is None:
            raise DataError(
                f"{MINARI}{dataset} needs the package minari, which is not installed here; pip install minari"
            )
        package = importlib.import_module("minari")
    try:
        return episode_arrays(package.load_dataset(dataset).iterate_episodes())
    except Exception as error:  # another project's code, and whatever the data set holds
        said = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{MINARI}{dataset} cannot be read: {type(error).__name__}: {said}; minari list local says what is there"
        ) from error


def _npz(path: Path, wanted: Wanted) -> Columns:
    with _opened(path) as file:
        names = set(file.files) - set(unread(file.files, wanted)) - set(OURS)
        return {name: _array(file, path, name) for name in sorted(names)}


def _array(file: Any, path: Path, name: str) -> Array:
    try:
        array: Array = file[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        objects = "Python objects, which are never loaded" if "allow_pickle" in str(error) else f"{error}"
        raise DataError(f"{path}: {name} must be an array of numbers, got {objects}") from None
    return array


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))  # by us: numpy leaves one open that is no .npz
            file = np.load(raw, allow_pickle=False)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, EOFError, zipfile.BadZipFile):
            raise DataError(f"{path} must be an .npz file of numpy's, and is none") from None
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} must be an .npz file of numpy's, got a single array")
        yield file


def _segment(path: Path, wanted: Wanted) -> Iterator[Unroll]:
    """Yield the unrolls of a segment; its rewards are as its run learned from them."""
    columns, foreign, reader = columns_of(wanted.spec, wanted.extras), Foreign(), SegmentReader(path)
    try:
        for number, record in enumerate(reader):
            unroll = wire.decode_unroll(record.unroll)
            refuse_misfit(unroll, columns, f"{path}, unroll {number}")
            refuse_values(unroll, wanted.spec, f"{path}, unroll {number}")
            yield foreign(unroll)
    except CodecError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if reader.torn_bytes:
        raise DataError(f"{path} is damaged: its last {reader.torn_bytes} bytes are no whole record")
