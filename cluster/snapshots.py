"""Snapshots of the shards on the disk: named for good, checked before use, removed when no checkpoint names them."""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cluster.contents import MOVED, shard_folder, shard_states
from replay_server.snapshots import SNAPSHOTS, prune_snapshots, read_snapshot, snapshot_paths
from starling.errors import RunError
from starling.state import State


def snapshot_name(number: int) -> str:
    """Return a name that no other future of a run has for its checkpoint of this number."""
    return f"{number:06d}-{os.urandom(4).hex()}"


def named_in(states: Mapping[str, State]) -> Iterator[tuple[int, str, str]]:
    """Yield which snapshots a checkpoint stands on: the shard's index, the name, and the sha256 of its index."""
    for name, state in shard_states(states).items():
        if "snapshot" in state.meta:
            index = int(name.partition("[")[2].rstrip("]"))
            yield index, str(state.meta["snapshot"]), str(state.meta["sha256"])


def has_snapshots(folder: Path) -> bool:
    """Say whether there is any; a replay whose contents were lost has none before its next checkpoint."""
    return any(snapshot_paths(shard) for shard in folder.glob("shard-*"))


def require_snapshots(folder: Path, states: Mapping[str, State]) -> None:
    """Refuse a checkpoint whose snapshots are not there as they were taken, if there are any at all."""
    if not has_snapshots(folder):
        return
    for index, name, sha256 in named_in(states):
        path = shard_folder(folder, index) / SNAPSHOTS / name
        _, segments = read_snapshot(path, sha256)
        for segment in segments:
            file = path / segment.file
            size = file.stat().st_size if file.exists() else 0
            if size < segment.bytes:
                raise RunError(f"{file} is damaged: it must have {segment.bytes} bytes, got {size}")


def prune_unnamed(folder: Path, named: Collection[str]) -> None:
    """Remove the snapshots that no checkpoint names, but for those that may be part of the next one.

    Those are newer than the shard's newest one that is named; if it has none, than the newest named one of any shard.
    """
    times = {shard: _times(shard) for shard in folder.glob("shard-*")}
    newest = {shard: max((own[name] for name in own if name in named), default=0) for shard, own in times.items()}
    for shard, own in times.items():
        since = newest[shard] or max(newest.values())
        prune_snapshots(shard, {*named, *(name for name, written in own.items() if written >= since)})
    if named:
        shutil.rmtree(folder / MOVED, ignore_errors=True)  # it is in a checkpoint of the shards that have it now


def _times(shard: Path) -> dict[str, int]:
    """Return when each of a shard's snapshots was written, in the clock of the disk."""
    found = {}
    for path in snapshot_paths(shard):
        with suppress(FileNotFoundError):  # its shard may drop one meanwhile
            found[path.name] = path.stat().st_mtime_ns
    return found


def disk_bytes(folder: Path) -> int:
    """Return what a folder's files take, each once however many names it has; any of them may go meanwhile."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                stat = os.stat(os.path.join(place, name))
                found[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(found.values())
