"""A run is a folder: whatever shows, evaluates, compares or resumes a run reads nothing else."""

import csv
import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

from cluster.checkpoints import Checkpoints, Which, load_checkpoint, read_json
from cluster.rows import json_line
from starling.config import did_you_mean, shown
from starling.errors import RunError, check
from starling.params import Params

EPISODE = ("elapsed_s", "env_steps", "actor", "return", "length")
TAIL_BYTES = 1 << 18  # more than any row


class RunFolder:
    """The folder of a run that is being made. Its owner holds the lock; rows are only ever appended."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._lock = lock
        self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = (path / "events.jsonl").open("a", encoding="utf-8")
        self._episodes = (path / "episodes.csv").open("a", encoding="utf-8", newline="")
        csv.writer(self._episodes).writerow(EPISODE)

    @classmethod
    def create(cls, runs: Path, name: str, config: str, env: Mapping[str, Any]) -> Self:
        """Make the folder of a new run and lock it; a name that is taken is refused."""
        path = runs / checked_name(name)
        try:
            runs.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except OSError as error:
            check(not path.is_dir(), f"run must be a new name, got {name}, which {runs} already holds")
            raise RunError(f"{path} cannot be made: {error.strerror}") from None
        lock = _lock(path)
        (path / "config.toml").write_text(config, "utf-8")
        (path / "env.json").write_text(f"{json.dumps(env, indent=2)}\n", "utf-8")  # last: it makes the folder a run
        return cls(path, lock)

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl`."""
        _append(self._metrics, row)

    def add_event(self, row: Mapping[str, Any]) -> None:
        """Append a row to `events.jsonl`."""
        _append(self._events, row)

    def add_episodes(self, rows: Iterable[tuple[float, int, int, float, int]]) -> None:
        """Append rows of `EPISODE` to `episodes.csv`."""
        csv.writer(self._episodes).writerows(rows)
        self._episodes.flush()

    def close(self) -> None:
        """Release the lock; the folder stays."""
        for file in (self._metrics, self._events, self._episodes, self._lock):
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is read; it may be under way."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved settings, which `cluster.config.load` reads."""
        return self.path / "config.toml"

    def env(self) -> dict[str, Any]:
        """Return what the run was started with."""
        return read_json(self.path / "env.json")

    def is_live(self) -> bool:
        """Whether somebody holds the lock."""
        try:
            with (self.path / "run.lock").open(encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False  # a copy that somebody made without it
        except BlockingIOError:
            return True
        return False

    def state(self) -> str:
        """Return how the run stands: running, how it ended, or that it was killed."""
        if self.is_live():
            return "running"
        event = self.last("events.jsonl")
        return str(event.get("reason", "failed" if event.get("event") == "failed" else "killed"))

    def best_mean(self) -> float | None:
        """Return the mean return of the best checkpoint, or None before there is one."""
        try:
            _, manifest = load_params(self)
        except RunError:
            return None
        mean: float | None = manifest.get("mean")
        return mean

    def events(self) -> list[dict[str, Any]]:
        """Return every whole row of `events.jsonl`."""
        return [json.loads(row) for row in (self.path / "events.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()]

    def last(self, file: Literal["metrics.jsonl", "events.jsonl"]) -> dict[str, Any]:
        """Return the last whole row of a file, or an empty one."""
        with (self.path / file).open("rb") as rows:
            rows.seek(max(0, rows.seek(0, os.SEEK_END) - TAIL_BYTES))
            whole = rows.read().rpartition(b"\n")[0].splitlines()  # a killed writer may leave half a row
        row: dict[str, Any] = json.loads(whole[-1]) if whole else {}
        return row


def checked_name(name: str) -> str:
    """Return a run's name, or refuse one that would lead elsewhere."""
    fine = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None and name != "latest"
    check(fine, f"run must be a name of letters, digits, '.', '_' and '-' other than latest, got {shown(name)}")
    return name


def stem_of(source: str) -> str:
    """Return what the runs of a preset or a file of settings are named after."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(source).stem).strip("-") or "run"


def free_name(runs: Path, stem: str) -> str:
    """Return `stem-NN` with the number after the largest one that is taken."""
    taken = [re.fullmatch(rf"{re.escape(stem)}-(\d+)", path.name) for path in runs.glob("*")]
    return f"{stem}-{max((int(match[1]) for match in taken if match), default=0) + 1:02d}"


def find_runs(runs: Path) -> list[Run]:
    """Return the runs of a folder, the newest last."""
    found = [Run(file.parent) for file in runs.glob("*/env.json")]
    return sorted(found, key=lambda run: (str(run.env().get("started")), run.name))


def find_run(runs: Path, name: str) -> Run:
    """Return a run by name or by path; `latest` is the newest."""
    if (Path(name) / "env.json").exists():
        return Run(Path(name))
    found = {run.name: run for run in find_runs(runs)}
    if name == "latest" and found:
        return list(found.values())[-1]
    if name not in found:
        raise RunError(f"run {shown(name)} is not in {runs}{did_you_mean(name, found)}")
    return found[name]


def load_params(run: Run, which: Which = "best") -> tuple[Params, dict[str, Any]]:
    """Return a checkpoint's parameters and manifest, or say why they cannot be trusted."""
    return load_checkpoint(run.path / "checkpoints", which)


def _lock(path: Path) -> IO[str]:
    """Lock a run for as long as the returned file is open; the kernel lets go of a dead owner's."""
    lock = (path / "run.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise RunError(f"run {path.name} is in use by process {owner}") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _append(file: IO[str], row: Mapping[str, Any]) -> None:
    file.write(f"{json_line(row)}\n")
    file.flush()
