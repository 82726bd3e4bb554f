"""Evidence: a preset run once per seed by the command that users type, and what its run folder says of it."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from cluster.config import Config, algorithm_name, dump
from cluster.provenance import Code
from cluster.results import Result
from cluster.run_folder import Run, stem_of
from cluster.user_folder import own_module
from starling.config import shown
from starling.errors import RunError, check

MOST_SEEDS = 1_000
POLL_S = 0.1
STOP_LIMIT_S = 20.0  # a run promises to be gone sooner


class Ran(NamedTuple):
    """How a command ended."""

    exit_code: int
    wall_s: float
    said: str = ""  # the last line of its stderr


class Runner(Protocol):
    """Runs `starling` with these arguments, and passes on a request to stop."""

    def __call__(self, args: Sequence[str], stopped: Callable[[], bool]) -> Ran:
        """Return how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is run once per seed."""

    source: str  # preset or file
    flags: tuple[str, ...]
    config: Config[Any]

    @property
    def stem(self) -> str:
        """What its runs are named after."""
        return stem_of(self.source)

    def arguments(self, seed: int) -> list[str]:
        """Return the arguments of `starling` that run it."""
        return ["train", self.source, *self.flags, "--seed", str(seed)]

    def planned(self, seed: int, code: Code) -> Result:
        """Return a result whose outcome is still open."""
        config = replace(self.config, seed=seed)
        return Result(
            date="",
            commit=code.commit,
            dirty=code.dirty,
            command=shlex.join(["starling", *self.arguments(seed)]),
            preset=self.source,
            algorithm=algorithm_name(config),
            env=config.env.id,
            runtime=config.runtime,
            seed=seed,
            settings=sha256(dump(config).encode()).hexdigest(),
            goal=config.goal.return_mean,
        )


def read_seeds(text: str) -> list[int]:
    """Read `1..5`, `1,3,7` and `1..3,7`."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\.\.(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        rule = f"a list of numbers and ranges such as 1..5 or 1,3,7, at most {MOST_SEEDS:,}"
        check(first <= last < first + MOST_SEEDS, f"seeds must be {rule}, got {shown(text)}")
        seeds.extend(range(first, last + 1))
    check(len(set(seeds)) == len(seeds) <= MOST_SEEDS, f"seeds must be named once each, got {shown(text)}")
    return seeds


def outcome(planned: Result, run: Run, ran: Ran) -> Result:
    """Complete a result by what the run folder says; a run that was refused before it had one is no result."""
    if not (run.path / "env.json").exists():
        raise RunError(ran.said.removeprefix("starling: ") or f"{planned.command} ended with code {ran.exit_code}")
    env, events = run.env(), run.events()
    last: dict[str, Any] = {"event": "", **(events[-1] if events else {})}
    evaluations = [event for event in events if event["event"] == "evaluation"]
    best: dict[str, Any] = max(evaluations, key=lambda event: float(event["mean"]), default={})
    began: dict[str, Any] = next((event for event in events if event["event"] == "began"), {})
    progress = last if last["event"] == "ended" else run.last("metrics.jsonl")
    packages = env["packages"]
    return replace(
        planned,
        date=env["started"],
        result=run.state(),
        return_mean=best.get("mean"),
        return_std=best.get("std"),
        final_mean=evaluations[-1]["mean"] if evaluations else None,
        env_steps=progress.get("env_steps"),
        updates=progress.get("updates"),
        train_s=progress.get("train_s", progress.get("elapsed_s")),
        start_s=began.get("start_s"),
        wall_s=round(ran.wall_s, 3),
        exit_code=ran.exit_code,
        error=str(last.get("error", "")),
        machine={
            **{name: env.get(name) for name in ("cpu", "cores", "memory_gib", "python")},
            **{name: packages.get(name) for name in ("torch", "ray", "gymnasium")},
        },
    )


def run_command(args: Sequence[str], stopped: Callable[[], bool]) -> Ran:
    """Run `starling` in a process of its own; asked to stop, it is asked to, and a second time it is made to."""
    began = time.monotonic()
    process = subprocess.Popen(
        own_module("cluster.cli", *args),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # the terminal's Ctrl-C reaches it through us, and once
    )
    try:
        said = _follow(process, stopped)
    except BaseException:
        process.send_signal(signal.SIGTERM)  # the second one: it ends at once
        _end(process)
        raise
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return Ran(process.returncode, time.monotonic() - began, lines[-1] if lines else "")


def _follow(process: "subprocess.Popen[bytes]", stopped: Callable[[], bool]) -> bytes:
    asked = False
    while True:
        if stopped() and not asked:
            asked = True
            process.send_signal(signal.SIGTERM)
        try:
            return process.communicate(timeout=POLL_S)[1]
        except subprocess.TimeoutExpired:
            continue


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(timeout=STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
