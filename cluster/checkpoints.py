"""Checkpoints: parameters and a manifest with their sha256, which appear whole or not at all."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from starling.config import shown
from starling.errors import RunError
from starling.params import Params

Which = Literal["best", "latest"]
Sync = Callable[[int], None]
SCHEMA = 1  # of the manifest
PARAMS = "params.safetensors"


class Checkpoints:
    """Writes the checkpoints of one run.

    A checkpoint's folder is renamed into place when every byte of it is on the disk, and the pointers `LATEST` and
    `BEST` follow: whenever the power goes, they name something whole. `sync` is what forces bytes to the disk.
    """

    def __init__(self, path: Path, sync: Sync = os.fsync) -> None:
        self._path = path
        self._sync = sync

    def save(self, params: Params, facts: Mapping[str, Any], best: bool = False) -> Path:
        """Write a checkpoint, named after `facts["updates"]`, and point LATEST (and BEST) to it."""
        tensors = save_tensors(params.arrays())
        sums = {PARAMS: hashlib.sha256(tensors).hexdigest()}
        layout = [[name, list(shape)] for name, shape in params.layout.entries]
        self._path.mkdir(exist_ok=True)
        path = self._place(f"step-{facts['updates']}", sums)
        if not path.exists():
            self._write_checkpoint(path, tensors, {"schema": SCHEMA, **facts, "layout": layout, "sha256": sums})
        for pointer in ("LATEST", "BEST") if best else ("LATEST",):
            unfinished = _unfinished(self._path / pointer)
            self._write(unfinished, f"{path.name}\n".encode())
            unfinished.replace(self._path / pointer)
            self._sync_folder(self._path)
        return path

    def _place(self, name: str, sums: Mapping[str, str]) -> Path:
        """Return the folder that holds these very parameters, or one that is free.

        An evaluated version may be older than the learner's updates say, so one count can name several.
        """
        path, again = self._path / name, 0
        while path.exists() and read_json(path / "manifest.json").get("sha256") != sums:
            again += 1
            path = self._path / f"{name}.{again}"
        return path

    def _write_checkpoint(self, path: Path, tensors: bytes, manifest: Mapping[str, Any]) -> None:
        unfinished = _unfinished(path)
        unfinished.mkdir(exist_ok=True)
        self._write(unfinished / PARAMS, tensors)
        self._write(unfinished / "manifest.json", f"{json.dumps(manifest, indent=2)}\n".encode())
        self._sync_folder(unfinished)
        unfinished.rename(path)
        self._sync_folder(self._path)

    def _write(self, path: Path, data: bytes) -> None:
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
    path = _pointed(checkpoints, which)
    manifest = read_json(path / "manifest.json")
    if manifest.get("schema") != SCHEMA:
        raise RunError(f"{path} has schema {shown(manifest.get('schema'))}, and this Starling reads {SCHEMA}")
    try:
        data = (path / PARAMS).read_bytes()
    except OSError as error:
        raise RunError(f"{path / PARAMS} cannot be read: {error.strerror}") from None
    if manifest.get("sha256") != {PARAMS: hashlib.sha256(data).hexdigest()}:
        raise RunError(f"{path / PARAMS} is damaged: its sha256 is not the one in the manifest")
    try:
        arrays = load_tensors(data)
        return Params.of({name: arrays[name].reshape(shape) for name, shape in manifest["layout"]}), manifest
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise RunError(f"{path} is damaged: its parameters do not have the layout in the manifest") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a table from a JSON file."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise RunError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it is not a table")
    return value


def _pointed(checkpoints: Path, which: Which) -> Path:
    pointer = checkpoints / which.upper()
    if not pointer.exists():
        raise RunError(f"run {checkpoints.parent.name} has no {which} checkpoint yet")
    name = pointer.read_bytes().decode("utf-8", "replace").strip()
    if not re.fullmatch(r"step-\d+(\.\d+)?", name):
        raise RunError(f"{pointer} must name a checkpoint, got {shown(name)}")
    return pointer.with_name(name)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")  # of an earlier, interrupted attempt too: one process writes a run
