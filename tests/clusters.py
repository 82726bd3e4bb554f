"""A real run in a process of its own, watched from outside: what the tests of the ray runtime share."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.ray_node import MARK

ROOT = Path(__file__).parents[1]
LIMIT_S = 90.0
NEVER = ("--goal.return-mean", "1000", "--total-steps", "1000000000")  # more than CartPole gives


class TrainingRun:
    """`starling train` with its run folder; as a context it leaves no process behind."""

    def __init__(self, folder: Path, *flags: str, preset: str = "cartpole", name: str = "run") -> None:
        self.path = folder / name
        self.stderr = folder / f"{name}.stderr"
        code = "import sys; from cluster.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "train", preset, "--runs", str(folder), "--run", name, "--quiet"]
        unmarked = {name: value for name, value in os.environ.items() if name != MARK}  # of the tests' own Ray
        with self.stderr.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, *flags], cwd=ROOT, env=unmarked, stderr=errors, start_new_session=True
            )

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(self, *_: object) -> None:
        mine = self.everyone()
        for _ in range(2):  # the second Ctrl-C ends it at once, and its folder with it
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=15.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for process in mine:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def events(self, what: str = "") -> list[dict[str, Any]]:
        """Return the rows of events.jsonl so far, of one kind or all."""
        return [row for row in _rows(self.path / "events.jsonl") if what in ("", row["event"])]

    def deaths(self) -> list[dict[str, Any]]:
        """Return who died; nobody may have been lost otherwise, but whom a slow machine kept from answering."""
        slow = ("did not answer", "made no progress")
        lost = [event for event in self.events("lost") if not event["why"].startswith(slow)]
        assert {event["why"] for event in lost} <= {"died"}
        return lost

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the checkpoints that the run can be resumed from."""
        return [event for event in self.events("checkpoint") if event["number"]]

    def newest(self) -> dict[str, Any]:
        """Return the newest row of metrics.jsonl, or nothing before there is one."""
        rows = _rows(self.path / "metrics.jsonl")
        return rows[-1] if rows else {}

    def roles(self) -> dict[str, Any]:
        """Return the newest figures of every role."""
        return dict(self.newest().get("roles", {}))

    def updates(self) -> int:
        """Return how many updates the learner has made."""
        return int(self.newest().get("updates", 0))

    def pid(self, role: str) -> int:
        """Return a role's process, waiting until it is up."""
        return int(self.until(lambda: self._pid(role), f"{role} has a process"))

    def _pid(self, role: str) -> int:
        process = self.roles().get(role, {}).get("process", {})
        return int(process["pid"]) if process.get("up") else 0

    def process_with(self, word: str) -> psutil.Process:
        """Return the process of this run that has this name, or this word in its command line, once there is one."""
        return self.until(lambda: self._process_with(word), f"a process {word}")

    def _process_with(self, word: str) -> psutil.Process | None:
        for process in self.everyone():
            with suppress(psutil.NoSuchProcess):
                if word in (process.name(), *process.cmdline()):
                    return process
        return None

    def until(self, done: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
        """Wait for something true and return it; a run that ended or a limit that passed says what was missing."""
        deadline = time.monotonic() + limit_s
        while not (found := done()):
            assert self.process.poll() is None, f"the run ended before {what}: {self.stderr.read_text()}"
            assert time.monotonic() < deadline, f"{what} did not come true within {limit_s:.0f} s: {self.events()[-5:]}"
            time.sleep(0.05)
        return found

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Return the exit code."""
        return self.process.wait(timeout=limit_s)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send the signal that a terminal would."""
        self.process.send_signal(number)

    def everyone(self) -> list[psutil.Process]:
        """Return every process of this run that lives: the launcher's descendants, and whoever bears its marks."""
        marks = {self._mark(child) for child in _children(self.process.pid)} - {None}
        return [p for p in psutil.process_iter() if self._mark(p) in marks] if marks else _children(self.process.pid)

    def marks(self) -> set[str]:
        """Return the marks of the Ray that this run has started so far."""
        return {mark for child in _children(self.process.pid) if (mark := self._mark(child)) is not None}

    @staticmethod
    def _mark(process: psutil.Process) -> str | None:
        try:
            return process.environ().get(MARK) if process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None


def alive(marks: set[str]) -> list[str]:
    """Return the command lines of processes that bear one of these marks."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if TrainingRun._mark(process) in marks:
                found.append(" ".join(process.cmdline()[:3]))
    return found


def until(done: Callable[[], bool]) -> None:
    """Wait until something is true of what this process asks itself."""
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def versions_only_grow(run: TrainingRun) -> None:
    """Require that no later version of a run has a smaller number."""
    for kind in ("evaluation", "checkpoint"):
        versions = [event["version"] for event in run.events(kind) if event.get("number", 1)]
        assert versions == sorted(versions)


def kill(pid: int) -> None:
    """End a process as a crash would."""
    assert pid > 0  # 0 and less are groups of processes, one's own among them
    os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
