"""Snapshots of a shard: an index of what its log does not say, and links to the segments that it stands on.

    <shard>/live/<first serial>.seg                        what is appended to
    <shard>/snapshots/<name>/{index.codec, index.sha256, <first serial>.seg ...}

A snapshot is renamed into place when every byte of it is on the disk. A live segment may grow after it was linked: the
index says how much of it counts. So a snapshot costs an index and some names, and holds on to the segments that the
live log lets go.
"""

import hashlib
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from replay_server.log import LIVE, link_or_copy
from replay_server.segments import Position, Segment, Sync, sync_folder
from starling.errors import CodecError, RunError
from starling.failpoints import reach
from starling.state import State, pack_state, unpack_state

SNAPSHOTS = "snapshots"
INDEX = "index.codec"
SEAL = "index.sha256"
_SEGMENTS = "segments"  # in the index's meta
_GONE = ".gone-"


def write_snapshot(folder: Path, name: str, index: State, segments: Sequence[Segment], sync: Sync) -> tuple[str, str]:
    """Write a snapshot of segments that are on the disk; returns its name, and the sha256 of its index.

    If another one has this name already, it stays, and this one's name is followed by a number.
    """
    reach("replay.before_index")
    table = [list(segment) for segment in segments]
    packed = pack_state(State(index.arrays, {**index.meta, _SEGMENTS: table})).data
    sha256 = hashlib.sha256(packed).hexdigest()
    path = _place(folder / SNAPSHOTS, name, sha256)
    if not path.exists():
        unfinished = path.with_name(f".{path.name}")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that died
        try:
            unfinished.mkdir(parents=True)
            for segment in segments:
                link_or_copy(folder / LIVE / segment.file, unfinished / segment.file, segment.bytes, sync)
            _write(unfinished / INDEX, packed, sync)
            _write(unfinished / SEAL, f"{sha256}\n".encode(), sync)
            sync_folder(unfinished, sync)
        except (OSError, RunError):
            shutil.rmtree(unfinished, ignore_errors=True)  # its links would hold segments on a disk that is full
            raise
        reach("replay.before_snapshot_rename")
        unfinished.rename(path)
        sync_folder(path.parent, sync)
        sync_folder(folder, sync)
        reach("replay.after_snapshot_rename")
    return path.name, sha256


def read_snapshot(path: Path, sha256: str | None = None) -> tuple[State, list[Segment]]:
    """Return a snapshot's index and segments if its index is the one with this sha256, or with the one beside it."""
    index = _read(path / INDEX)
    if sha256 is None:
        sha256 = _read(path / SEAL).decode("utf-8", "replace").strip()
    if hashlib.sha256(index).hexdigest() != sha256:
        raise RunError(f"{path / INDEX} is damaged: its sha256 is not the one that was kept of it")
    try:
        state = unpack_state(index)
        return state, [Segment(*fields) for fields in state.meta[_SEGMENTS]]
    except (CodecError, KeyError, TypeError) as error:
        raise RunError(f"{path / INDEX} is damaged: {error}") from None


def snapshot_paths(folder: Path) -> list[Path]:
    """Return the snapshots of a shard, the newest first."""
    written = []
    for path in (folder / SNAPSHOTS).glob("*"):
        if not path.name.startswith("."):
            with suppress(FileNotFoundError):  # the launcher may remove one meanwhile
                written.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(written, reverse=True)]


def newest_snapshot(folder: Path, passes: Collection[Position], notes: list[str]) -> tuple[str, State] | None:
    """Return the newest one that can be trusted and is of the log that `passes` there, with its name.

    One of a future that was given up, or of other shards, may lie beside it.
    """
    for path in snapshot_paths(folder):
        try:
            index, segments = read_snapshot(path)
        except RunError as damage:
            notes.append(f"{damage}; the priorities are those of an older snapshot, if there is one")
            continue
        if segments and segments[-1].end in passes:
            return path.name, index
    return None


def prune_snapshots(folder: Path, keep: Collection[str]) -> None:
    """Remove a shard's snapshots but for those that are to be kept; one that is being taken is not touched."""
    for path in snapshot_paths(folder):
        if path.name not in keep:
            _put_aside(path)
    reach("replay.before_prune")
    for gone in (folder / SNAPSHOTS).glob(f"{_GONE}*"):
        shutil.rmtree(gone)


def remove_snapshot(folder: Path, name: str) -> None:
    """Remove one of a shard's snapshots."""
    shutil.rmtree(_put_aside(folder / SNAPSHOTS / name))


def remove_unfinished(folder: Path) -> None:
    """Remove what a process left that died while it took or removed a snapshot."""
    for path in (folder / SNAPSHOTS).glob(".*"):
        shutil.rmtree(path, ignore_errors=True)  # the launcher may be removing it too


def facts(index: State) -> dict[str, Any]:
    """Return of an index what is worth knowing without reading it."""
    return {name: index.meta[name] for name in ("origin", "inserted", "end")} | {
        "size": int((index.arrays["masses"] > 0.0).sum())
    }


def _put_aside(path: Path) -> Path:
    return path.rename(path.with_name(f"{_GONE}{path.name}"))  # at once: half a snapshot must not look like one


def _place(folder: Path, name: str, sha256: str) -> Path:
    """Return the folder of the snapshot with this index, or a free one: a name may come again in another future."""
    path, again = folder / name, 0
    while path.exists() and not _has(path, sha256):
        again += 1
        path = folder / f"{name}.{again}"
    return path


def _has(path: Path, sha256: str) -> bool:
    try:
        read_snapshot(path, sha256)
    except RunError:
        return False
    return True


def _write(path: Path, data: bytes | memoryview, sync: Sync) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        sync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
