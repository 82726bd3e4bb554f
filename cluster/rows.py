"""Rows of JSON, one a line: what the run's files and `--json` hold."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

OWED_BYTES = 1 << 20


class Rows:
    """Appends lines to a file. Those that the disk refuses wait, the last megabyte of them, until it takes them again.

    Half a line that a killed writer left is cut off.
    """

    def __init__(self, path: Path, write: Callable[[int, bytes], int] = os.write) -> None:
        self._write = write
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._owed = b""
        self._cut_half_a_line()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return os.fstat(self._descriptor).st_size == 0

    def add(self, text: str) -> None:
        """Append whole lines."""
        self._owed += text.encode()
        try:
            while self._owed:
                self._owed = self._owed[self._write(self._descriptor, self._owed) :]
        except OSError:  # no room; whoever saves a checkpoint says so, as that is what is missed first
            begun = self._owed.find(b"\n") + 1  # the rest of a line of which a part may be written
            late = self._owed[begun:][-OWED_BYTES:]
            whole = late if len(self._owed) - begun <= OWED_BYTES else late[late.find(b"\n") + 1 :]
            self._owed = self._owed[:begun] + whole

    def close(self) -> None:
        """Write what is owed, if the disk takes it, and let go of the file."""
        self.add("")
        self._cut_half_a_line()
        os.close(self._descriptor)

    def _cut_half_a_line(self) -> None:
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        tail = os.pread(self._descriptor, OWED_BYTES, max(0, size - OWED_BYTES))
        os.ftruncate(self._descriptor, size - len(tail) + tail.rfind(b"\n") + 1)
        os.lseek(self._descriptor, 0, os.SEEK_END)


def as_row(event: Any) -> dict[str, Any]:
    """Return a dataclass's fields, not copied."""
    return {field.name: getattr(event, field.name) for field in fields(event)}


def json_line(row: Mapping[str, Any]) -> str:
    """Write a row that every JSON reader takes: a NaN, the mean of nothing, becomes null."""
    return json.dumps(plain(row), allow_nan=False)


def plain(value: Any) -> Any:
    """Return the same with Python's own numbers, NaN and infinity as None."""
    match value:
        case np.generic():
            return plain(value.item())
        case float():
            return value if isfinite(value) else None
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return value
