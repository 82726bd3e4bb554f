"""Results that are kept for good: a line of JSON for each run, only ever appended, whoever is interrupted."""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from cluster.rows import as_row, json_line
from starling.errors import RunError

REACHED = ("goal", "asked")  # results of a run that did what it was started for
ENDED = (*REACHED, "budget")  # of one that nothing cut short


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run: what was run where, and what came of it."""

    date: str
    commit: str | None
    dirty: bool  # the code had been changed since that commit
    command: str  # repeats the run; ends with the seed
    preset: str
    algorithm: str
    env: str
    runtime: str
    seed: int
    settings: str  # sha256 of the resolved settings
    goal: float | None
    result: str = ""  # goal, budget, asked, failed or killed; nothing before it was run
    return_mean: float | None = None  # of the best evaluation
    return_std: float | None = None  # over its episodes
    final_mean: float | None = None  # of the last one
    env_steps: int | None = None
    updates: int | None = None
    train_s: float | None = None
    start_s: float | None = None
    wall_s: float = 0.0  # of the whole command
    exit_code: int = 0
    error: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """The command without its seed: runs of one recipe are compared."""
        return self.command.removesuffix(f" --seed {self.seed}")

    def repeats(self, other: "Result", any_commit: bool) -> bool:
        """Say whether both are runs of the same settings, and of the same code unless that is not asked for."""
        same = (self.command, self.settings) == (other.command, other.settings)
        return same and (any_commit or (self.commit, self.dirty) == (other.commit, other.dirty))


class ResultsFile:
    """A file of results. A line counts once its end is there; half a line, left by a power cut, is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make sure that results can be kept, before anybody works for one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from None

    def read(self) -> list[Result]:
        """Return every result, the oldest first."""
        try:
            whole = self.path.read_bytes().rpartition(b"\n")[0]
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror}") from None
        return [self._parse(number, line) for number, line in enumerate(whole.splitlines(), 1) if line.strip()]

    def append(self, result: Result) -> None:
        """Add a result; it is on the disk when this returns."""
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _cut_off_half_a_line(file)
            file.write(f"{json_line(as_row(result))}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def _parse(self, number: int, line: bytes) -> Result:
        try:
            row = json.loads(line)
            return Result(**{each.name: row[each.name] for each in fields(Result)})
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{self.path} line {number} is damaged: {type(error).__name__} {error}; mend or remove that line"
            ) from None


def _cut_off_half_a_line(file: BinaryIO) -> None:
    file.seek(0)
    data = file.read()
    file.truncate(data.rfind(b"\n") + 1)


def current(results: list[Result]) -> tuple[list[Result], list[Result]]:
    """Split results into those that count and those of code that was replaced.

    Of each seed, all runs of the code that ran it last count: repeating a run adds to it, and takes nothing away.
    """
    newest = {(result.recipe, result.seed): (result.commit, result.dirty) for result in results}
    counts = [newest[result.recipe, result.seed] == (result.commit, result.dirty) for result in results]
    pairs = list(zip(results, counts, strict=True))
    return [result for result, good in pairs if good], [result for result, good in pairs if not good]
