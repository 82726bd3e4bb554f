"""Checkpoints: parameters, roles' states and a manifest with their sha256, which appear whole or not at all."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from cluster.rows import plain
from starling.config import shown
from starling.errors import CodecError, RunError
from starling.failpoints import reach
from starling.params import Params
from starling.state import State, pack_state, unpack_state
from starling.types import Columns

Which = Literal["best", "latest"]
Sync = Callable[[int], None]
Require = Callable[[Mapping[str, State]], None]
"""Refuses a checkpoint's states with a RunError"""
SCHEMA = 2  # of the manifest and the files beside it
READS = (1, SCHEMA)  # one of schema 1 held what the shards held, in a way that none can take over any more
MANIFEST, PARAMS, LEARNER, ROLES = "manifest.json", "params.safetensors", "learner.safetensors", "roles.codec"
THE_LEARNER, A_SHARD, NETWORKS = "learner[0]", "replay_server[", "nets/networks/"
ORIGIN_1 = 1 << 10  # larger than that of any shard of a checkpoint of schema 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds: for whoever acts, and, in one that a run can go on from, of every role."""

    params: Params
    facts: Mapping[str, Any]  # `updates` among them, after which it is named
    states: Mapping[str, State] = field(default_factory=dict)


def anything(states: Mapping[str, State]) -> None:
    """Require nothing."""


class Checkpoints:
    """Writes the checkpoints of one run.

    A checkpoint's folder is renamed into place when every byte of it is on the disk, and the pointers `BEST` and
    `LATEST` follow: whenever the power goes, they name something whole. `LATEST` names the newest one that the run
    can go on from. `sync` is what forces bytes to the disk.
    """

    def __init__(self, path: Path, sync: Sync = os.fsync) -> None:
        self._path = path
        self._sync = sync

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Write a checkpoint and point to it: BEST if it is, LATEST if the run can go on from it."""
        reach("checkpoint.before_files")
        files = _files(checkpoint)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self._path.mkdir(exist_ok=True)
        path = self._place(f"step-{checkpoint.facts['updates']}", sums)
        if not path.exists():
            layout = [[name, list(shape)] for name, shape in checkpoint.params.layout.entries]
            table = {"schema": SCHEMA, "name": path.name, **plain(checkpoint.facts), "layout": layout, "sha256": sums}
            table["snapshots"] = _snapshots(checkpoint.states)
            self._write_checkpoint(path, files, sealed(table))
        seal = read_manifest(path)["seal"]
        if best and not self._is_worse(checkpoint.facts):
            self._point("BEST", path.name, seal)
        reach("checkpoint.between_pointers")
        if checkpoint.states:
            self._point("LATEST", path.name, seal)
        return path

    def best(self) -> Path | None:
        """Return the best checkpoint, or the latest before anything was evaluated, if there is one."""
        pointer = self._pointer("BEST") or self._pointer("LATEST")
        return self._path / pointer.split()[0] if pointer else None

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` that the run can go on from, and those that are pointed to."""
        reach("checkpoint.before_prune")
        for left in (*self._path.glob(".step-*"), *self._path.glob(".gone-*")):
            shutil.rmtree(left, ignore_errors=True)  # of a process that died
        stay = {name.split()[0] for name in map(self._pointer, ("BEST", "LATEST")) if name}
        whole = [path for path in by_age(self._path) if (path / ROLES).exists()]
        stay |= {path.name for path in whole[:keep]}
        for path in by_age(self._path):
            if path.name not in stay:
                gone = path.with_name(f".gone-{path.name}")
                path.rename(gone)  # at once: half a checkpoint must not look like one
                reach("checkpoint.between_prunes")
                shutil.rmtree(gone)

    def snapshots(self) -> set[str]:
        """Return the names of all snapshots on which a checkpoint stands; RunError if one does not say."""
        return {name for path in by_age(self._path) for name in read_manifest(path).get("snapshots", [])}

    def _is_worse(self, facts: Mapping[str, Any]) -> bool:
        """Whether BEST, perhaps of a future that a resumed run has lost, has a larger mean."""
        try:
            _, manifest = load_checkpoint(self._path, "best")
        except RunError:
            return False
        mean, best = facts.get("mean"), manifest.get("mean")
        return best is not None and (mean is None or mean < best)

    def _place(self, name: str, sums: Mapping[str, str]) -> Path:
        """Return the folder that holds these very files, or one that is free.

        An evaluated version may be older than the learner's updates say, so one count can name several.
        """
        path, again = self._path / name, 0
        while path.exists() and not _holds(path, sums):
            again += 1
            path = self._path / f"{name}.{again}"
        return path

    def _write_checkpoint(self, path: Path, files: Mapping[str, Any], manifest: bytes) -> None:
        unfinished = _unfinished(path)
        shutil.rmtree(unfinished, ignore_errors=True)  # of an earlier, interrupted attempt: one process writes a run
        unfinished.mkdir()
        for name, data in files.items():
            self._write(unfinished / name, data)
            reach("checkpoint.between_files")
        reach("checkpoint.before_manifest")
        self._write(unfinished / MANIFEST, manifest)
        self._sync_folder(unfinished)
        reach("checkpoint.before_rename")
        unfinished.rename(path)
        self._sync_folder(self._path)
        reach("checkpoint.after_rename")

    def _point(self, pointer: str, name: str, seal: str) -> None:
        unfinished = _unfinished(self._path / pointer)
        self._write(unfinished, f"{name} {seal}\n".encode())
        reach("checkpoint.before_pointer")
        unfinished.replace(self._path / pointer)
        self._sync_folder(self._path)

    def _pointer(self, pointer: str) -> str:
        path = self._path / pointer
        return path.read_text("utf-8", "replace").strip() if path.exists() else ""

    def _write(self, path: Path, data: Any) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            self._sync(file.fileno())

    def _sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self._sync(descriptor)
        finally:
            os.close(descriptor)


def load_checkpoint(checkpoints: Path, which: Which) -> tuple[Params, dict[str, Any]]:
    """Return the parameters and the manifest of the best or latest checkpoint, or say why they cannot be trusted."""
    path, manifest = _pointed(checkpoints, which)
    return _params(path, manifest), manifest


def load_to_resume(checkpoints: Path, name: str | None = None, require: Require = anything) -> Checkpoint:
    """Return the named checkpoint, or the latest; one that cannot be trusted is never replaced by another unasked.

    `require` refuses states that stand on something that is not there.
    """
    try:
        checkpoint = _whole(*_pointed(checkpoints, "latest")) if name is None else _named(checkpoints, name)
        require(checkpoint.states)
        return checkpoint
    except RunError as error:
        usable = newest_usable(checkpoints, require)
        hint = f"the newest usable checkpoint is {usable}: --at {usable} goes on from there"
        raise RunError(f"{error}; {hint if usable else 'no checkpoint of this run is usable'}") from None


def newest_usable(checkpoints: Path, require: Require = anything) -> str | None:
    """Return the name of the newest checkpoint that a run can go on from."""
    for path in by_age(checkpoints):
        try:
            require(_named(checkpoints, path.name).states)
        except RunError:
            continue
        return path.name
    return None


def by_age(checkpoints: Path) -> list[Path]:
    """Return all checkpoints, the newest first."""
    return sorted(checkpoints.glob("step-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def sealed(table: Mapping[str, Any]) -> bytes:
    """Write a manifest that tells of any change to it: with the sha256 of its own text."""
    return _text({**table, "seal": hashlib.sha256(_text(table)).hexdigest()})


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint, or say why it cannot be trusted."""
    file = path / MANIFEST
    table = read_json(file)
    if table.get("schema") not in READS:
        known = " and ".join(map(str, READS))
        raise RunError(f"{path} has schema {shown(table.get('schema'))}, and this Starling reads {known}")
    rest = {name: value for name, value in table.items() if name != "seal"}
    if sealed(rest) != _read(file):
        raise RunError(f"{file} is damaged: its text is not the one that it was sealed with")
    if table["name"] != path.name:
        raise RunError(f"{path} is not where it was written: its manifest is of {shown(table['name'])}")
    return table


def read_json(path: Path) -> dict[str, Any]:
    """Read a table from a JSON file."""
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError):
        raise RunError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it is not a table")
    return value


def _files(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the bytes of each file: parameters, the rest of the learner if there is one, and all other roles."""
    files: dict[str, Any] = {PARAMS: save_tensors(checkpoint.params.arrays())}
    if not checkpoint.states:
        return files
    others = State()
    for name, state in checkpoint.states.items():
        if name == THE_LEARNER:
            known = {NETWORKS + entry for entry, _ in checkpoint.params.layout.entries}
            files[LEARNER] = save_tensors({key: a for key, a in state.arrays.items() if key not in known})
            state = State(meta=state.meta)
        others = others.and_(state.within(name))
    return {**files, ROLES: pack_state(others)}


def _snapshots(states: Mapping[str, State]) -> list[str]:
    named = {state.meta.get("snapshot") for name, state in states.items() if name.startswith(A_SHARD)}
    return sorted(str(name) for name in named - {None})


def _whole(path: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    """Read everything that a run needs to go on."""
    params = _params(path, manifest)
    if ROLES not in manifest["sha256"]:
        raise RunError(f"{path} holds parameters alone: a run cannot go on from it")
    try:
        others = unpack_state(_trusted(path, manifest, ROLES))
        states = {name: others.under(name) for name in others.meta}
        if THE_LEARNER in states:
            arrays: Columns = load_tensors(bytes(_trusted(path, manifest, LEARNER)))
            acting = {NETWORKS + name: array for name, array in params.arrays().items()}
            states[THE_LEARNER] = State({**acting, **arrays}, states[THE_LEARNER].meta)
        for file in manifest["sha256"]:
            if file.startswith("replay-"):  # of schema 1
                shard = file.removeprefix("replay-").removesuffix(".codec")
                states[f"{A_SHARD}{shard}]"] = State(meta={"origin": ORIGIN_1})
    except (CodecError, SafetensorError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    return Checkpoint(params=params, facts=manifest, states=states)


def _params(path: Path, manifest: Mapping[str, Any]) -> Params:
    data = _trusted(path, manifest, PARAMS)
    try:
        arrays = load_tensors(data)
        return Params.of({name: arrays[name].reshape(shape) for name, shape in manifest["layout"]})
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise RunError(f"{path} is damaged: its parameters do not have the layout in the manifest") from None


def _trusted(path: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    data = _read(path / name)
    if manifest["sha256"].get(name) != hashlib.sha256(data).hexdigest():
        raise RunError(f"{path / name} is damaged: its sha256 is not the one in the manifest")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None


def _holds(path: Path, sums: Mapping[str, str]) -> bool:
    try:
        return bool(read_manifest(path)["sha256"] == sums)
    except RunError:
        return False


def _pointed(checkpoints: Path, which: Which) -> tuple[Path, dict[str, Any]]:
    pointer = checkpoints / which.upper()
    if not pointer.exists():
        raise RunError(f"run {checkpoints.parent.name} has no {which} checkpoint yet")
    text = _read(pointer).decode("utf-8", "replace")
    name, _, seal = text.removesuffix("\n").partition(" ")
    path = checkpoints / _checked(name, str(pointer))
    manifest = read_manifest(path)
    if text != f"{name} {manifest['seal']}\n":
        raise RunError(f"{pointer} is damaged: the seal of {name} is not {shown(seal)}")
    return path, manifest


def _named(checkpoints: Path, name: str) -> Checkpoint:
    path = checkpoints / _checked(name, "at")
    return _whole(path, read_manifest(path))


def _checked(name: str, where: str) -> str:
    if not re.fullmatch(r"step-\d+(\.\d+)?", name):
        raise RunError(f"{where} must name a checkpoint, got {shown(name)}")
    return name


def _text(table: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(table, indent=2)}\n".encode()


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")
