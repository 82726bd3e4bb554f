"""Recorded data on its way into a run: files that appear whole in a folder of its own, and go when they are stored."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from cluster.config import Config, ReplayRun
from cluster.roles import build_algorithm
from replay_server.segments import SUFFIX, Position, SegmentReader, SegmentWriter
from replay_server.storage import columns_of, row_bytes
from starling import wire
from starling.errors import DataError, StarlingError
from starling.metrics import Clock
from starling.recorded import refuse_misfit
from starling.spec import ArraySpec, Spec
from starling.types import Array, Unroll

FOLDER = "inbox"  # in the folder of a run's replay
REFUSED = "refused"
TAKEN = ".taken"  # how many records of a file are stored, beside it
MAX_UNROLLS, MAX_S = 64, 0.05  # in one call

Fill = Callable[[int, Array, int], bool]
"""Gives a shard a packed unroll, with its number in this inbox's life; False if nobody knows that it took it"""


class Written(NamedTuple):
    """What a file of recorded data holds."""

    path: Path
    steps: int
    episodes: int


class Inbox:
    """Hands recorded data to the shards between the turns of a run, a little at a time.

    An unroll that is handed over again, as no answer came in time, keeps its number, so that its shard takes it once.
    A file is gone when every unroll of it was stored; a run that ends before goes on with the rest. A file that cannot
    be read is put aside and noted, with what came before the damage stored; it ends nothing.
    """

    def __init__(
        self,
        folder: Path | None,
        columns: Mapping[str, ArraySpec],
        shards: int,
        rows: int,
        note: Callable[..., None],
        clock: Clock,
    ) -> None:
        self._folder = folder
        self._columns = columns
        self._shards = shards
        self._rows = rows  # of each shard
        self._note = note
        self._clock = clock
        self._path: Path | None = None  # that is being read
        self._unrolls: Iterator[tuple[int, Array]] = iter(())
        self._next: tuple[int, Array] | None = None  # the actor, and its unroll
        self._number = 0  # of the next one, over all files
        self._stored = self._steps = 0  # of this file

    def feed(self, fill: Fill) -> int:
        """Hand over some of what there is, and return how many unrolls; 0 if there is nothing or nobody takes it."""
        done, until = 0, self._clock() + MAX_S
        while done < MAX_UNROLLS and (not done or self._clock() < until):
            upcoming = self._upcoming()
            if upcoming is None or not fill(upcoming[0] % self._shards, upcoming[1], self._number):
                break
            self._next = None
            self._number += 1
            self._stored += 1
            done += 1
        if done and self._path is not None:
            with suppress(OSError):  # a full disk ends nothing; a run that ends too stores the rest once more
                _note_stored(self._path, self._stored)
        return done

    def _upcoming(self) -> tuple[int, Array] | None:
        while self._next is None:
            if self._path is None and not self._open():
                return None
            try:
                self._next = next(self._unrolls, None)
                if self._next is None:
                    self._finish()
            except (StarlingError, OSError) as error:
                self._refuse(error)
        return self._next

    def _open(self) -> bool:
        """Begin with the file that comes first; a run without a folder has none."""
        if self._folder is None:
            return False
        with suppress(FileNotFoundError):
            waiting = [entry.name for entry in os.scandir(self._folder) if _is_whole(entry.name)]
            if waiting:
                self._path = self._folder / min(waiting)
                self._stored = _stored(self._path)
                self._steps = 0
                self._unrolls = self._read(self._path, self._stored)
                return True
        return False

    def _read(self, path: Path, skip: int) -> Iterator[tuple[int, Array]]:
        reader = SegmentReader(path)
        for number, record in enumerate(reader):
            if number >= skip:
                unroll = wire.decode_unroll(record.unroll)
                refuse_misfit(unroll, self._columns, f"{path}, unroll {number}")
                needed = unroll.num_steps + len(unroll.final_at)
                if needed > self._rows:
                    rule = f"must fit in a shard, which keeps {self._rows} steps (replay.capacity)"
                    raise DataError(f"{path}, unroll {number}: its steps {rule}, got {needed}")
                self._steps += unroll.num_steps
                yield unroll.actor, wire.encode_unroll(unroll)  # as we would have written what was looked at
        if reader.torn_bytes:
            raise DataError(f"{path} is damaged: its last {reader.torn_bytes} bytes are no whole record")

    def _finish(self) -> None:
        assert self._path is not None
        self._note("filled", file=self._path.name, unrolls=self._stored, env_steps=self._steps)
        self._path.unlink(missing_ok=True)
        self._leave()

    def _refuse(self, error: Exception) -> None:
        assert self._path is not None
        aside = self._path.parent / REFUSED / self._path.name
        self._note("filling_failed", file=self._path.name, unrolls=self._stored, error=str(error), aside=str(aside))
        aside.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            self._path.replace(aside)
        self._leave()

    def _leave(self) -> None:
        assert self._path is not None
        _taken(self._path).unlink(missing_ok=True)
        self._path, self._unrolls = None, iter(())


def inbox_of(folder: str, config: Config[Any], spec: Spec, note: Callable[..., None], clock: Clock) -> Inbox:
    """Return the inbox of a run whose replay lies in this folder; empty: of one that has none."""
    algorithm = build_algorithm(config)
    columns = columns_of(spec, algorithm.columns(spec))
    if not isinstance(config, ReplayRun):
        return Inbox(None, columns, 0, 0, note, clock)
    rows = config.replay.shard_rows(row_bytes(columns, algorithm.window))
    return Inbox(Path(folder) / FOLDER if folder else None, columns, config.replay.shards, rows, note, clock)


def deliver(inbox: Path, stem: str, unrolls: Iterable[Unroll]) -> Written:
    """Put recorded data into a run's inbox, under a name that is free."""
    inbox.mkdir(parents=True, exist_ok=True)
    with _written(inbox, unrolls) as (file, steps, episodes):
        for number in count(1):
            path = inbox / f"{stem}-{number:04d}{SUFFIX}"
            with suppress(FileExistsError):
                os.link(file, path)
                return Written(path, steps, episodes)
    raise AssertionError("there is always a free number")


def write_segment(path: Path, unrolls: Iterable[Unroll]) -> Written:
    """Write unrolls to a file of their own, whole or not at all."""
    with _written(path.parent, unrolls) as (file, steps, episodes):
        file.replace(path)
        return Written(path, steps, episodes)


@contextmanager
def _written(folder: Path, unrolls: Iterable[Unroll]) -> Iterator[tuple[Path, int, int]]:
    """Write a segment beside where it is to be, and yield it with how many steps and ends of episodes it holds."""
    steps = episodes = row = 0
    with _room_in(folder) as room:
        writer = SegmentWriter(room, Position())
        for unroll in unrolls:
            rows = unroll.num_steps + len(unroll.final_at)
            writer.append(row, rows, False, wire.encode_unroll(unroll))
            steps, episodes, row = steps + unroll.num_steps, episodes + len(unroll.final_at), row + rows
        if not steps:
            raise DataError("recorded data must hold at least one step, got none")
        writer.sync()
        writer.close()
        yield room / writer.segment.file, steps, episodes


@contextmanager
def _room_in(folder: Path) -> Iterator[Path]:
    try:
        with TemporaryDirectory(prefix=".unfinished-", dir=folder) as room:
            yield Path(room)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from None


def _is_whole(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


def _taken(path: Path) -> Path:
    return path.with_name(f".{path.name}{TAKEN}")


def _note_stored(path: Path, stored: int) -> None:
    fresh = _taken(path).with_suffix(".new")
    fresh.write_text(" ".join(map(str, [stored, *_looks(path)])))
    fresh.replace(_taken(path))  # at once: half a count would be none


def _stored(path: Path) -> int:
    """Return how many records of this very file are stored; a count that outlived another of its name says nothing."""
    try:
        stored, *looks = map(int, _taken(path).read_text().split())
        return stored if looks == _looks(path) else 0
    except (OSError, ValueError):
        return 0


def _looks(path: Path) -> list[int]:
    """Return what tells a file from a later one of its name, and stays when a run's folder is moved."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
