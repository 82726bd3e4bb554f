"""`starling doctor`: whether this machine is fit for a run, a line for each thing that was checked."""

import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires
from importlib.util import find_spec
from pathlib import Path

import psutil

from cluster import checkup
from cluster.checkup import Disk, Finding, Requirement, Temp, Trial
from cluster.cli import FAILED, OK
from cluster.commands.options import print_help, read, wants_help
from cluster.provenance import CHECKOUT, DISTRIBUTION, cores, installed
from cluster.ray_node import OBJECT_STORE_BYTES, PREFIX
from cluster.rows import json_line
from cluster.signals import StopRequest
from cluster.trials import attempt
from starling.errors import check
from starling.failpoints import NAMES

ENV_LIMIT_S, RAY_LIMIT_S = 8.0, 20.0
CHUNK = bytes(4 << 20)
WRITING_S = 0.5
MOST_CHUNKS = 16

Attempt = Callable[..., Trial]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """What is checked."""

    env: str = "CartPole-v1"
    """environment to make and step"""
    runs: str = "runs"
    """folder of all runs"""
    ray: bool = True
    """start a Ray, call an actor, and look at who listens where"""
    json: bool = False
    """print lines of JSON"""
    failpoints: bool = False
    """check nothing: print the places at which a test can let a run die"""


def main(args: list[str], attempt: Attempt = attempt) -> int:
    """Check everything, and print a line for each as it is found; 1 when something must be mended first."""
    if wants_help(args):
        return print_help(DoctorOptions(), "doctor", "", "Say whether this machine is fit for a run.")
    before, options = read(args, DoctorOptions)
    check(not before, f"doctor must be given flags only, got {' '.join(before)}")
    if options.failpoints:
        print("\n".join(NAMES))
        return OK
    failed = False
    with StopRequest() as stopped:
        for finding in findings(options, attempt, stopped):
            failed |= finding.level == "fail"
            print(json_line(finding._asdict()) if options.json else f"{finding.level:^4} {finding.said}", flush=True)
            if stopped():
                raise KeyboardInterrupt
    if not failed and not options.json:
        print("next  starling train cartpole")
    return FAILED if failed else OK


def findings(options: DoctorOptions, attempt: Attempt, stopped: Callable[[], bool]) -> Iterator[Finding]:
    """Yield what each check finds, the quick ones first."""
    needed = required()
    found = {"python": sys.version.split()[0], **{each.name: installed(each.name) for each in needed[1:]}}
    yield from checkup.versions(needed, found, torch_build())
    memory = psutil.virtual_memory()
    yield checkup.machine(cores(), memory.total, memory.available)
    yield checkup.shared_memory(free_in("/dev/shm"), OBJECT_STORE_BYTES)
    yield checkup.loopback(loopback_error())
    yield checkup.token(mode_of(Path.home() / ".ray" / "auth_token"))
    yield checkup.temp_folder(measure_temp())
    yield checkup.runs_folder(measure_disk(Path(options.runs)))
    if found.get("gymnasium"):
        trial = attempt("env", options.env, limit_s=ENV_LIMIT_S, stopped=stopped)
        yield checkup.environment(options.env, trial)
    if options.ray and found.get("ray"):
        yield checkup.ray_start(attempt("ray", limit_s=RAY_LIMIT_S, stopped=stopped))


def required() -> list[Requirement]:
    """Return what the checkout asks for, Python first, or else what was asked for when it was installed."""
    file = CHECKOUT / "pyproject.toml"
    if file.exists():
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        lines, python = project["dependencies"], project["requires-python"]
    else:
        lines, python = _installed_requirements()
    return [Requirement("python", python), *checkup.requirements(lines)]


def torch_build() -> str:
    """Return what torch was built for, without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "not installed"
    text = Path(spec.origin).with_name("version.py").read_text("utf-8")
    built = re.search(r"^(cuda|hip)\b.*= '(.+)'", text, re.MULTILINE)
    return f"{built[1]} {built[2]}" if built else "cpu"


def free_in(path: str) -> int | None:
    """Return a file system's free bytes, or None where there is none."""
    return shutil.disk_usage(path).free if os.path.isdir(path) else None


def loopback_error() -> str:
    """Return why no port of the loopback interface can be bound, or nothing."""
    try:
        with socket.create_server(("127.0.0.1", 0)):
            return ""
    except OSError as error:
        return str(error.strerror)


def mode_of(path: Path) -> int | None:
    """Return a file's permissions, or None if it is not there."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def measure_temp() -> Temp:
    """Make a folder as each run does, and look at it."""
    try:
        path = tempfile.gettempdir()
        made = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        return Temp(os.environ.get("TMPDIR", "/tmp"), error.strerror or str(error))
    private = (mode_of(made) or 0) & 0o077 == 0
    made.rmdir()
    mode = mode_of(Path(path)) or 0
    return Temp(path, private=private, sticky=not mode & stat.S_IWOTH or bool(mode & stat.S_ISVTX))


def measure_disk(runs: Path, clock: Callable[[], float] = time.monotonic) -> Disk:
    """Write to the disk that holds the runs, or will hold them, for a moment; nothing stays."""
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    written, began = 0, clock()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            while written < MOST_CHUNKS and clock() - began < WRITING_S:
                file.write(CHUNK)
                file.flush()
                os.fsync(file.fileno())
                written += 1
        took_s = clock() - began
        return Disk(str(runs), "", shutil.disk_usage(folder).free, written * len(CHUNK) / max(took_s, 1e-9))
    except OSError as error:
        return Disk(str(runs), error.strerror or str(error))


def _installed_requirements() -> tuple[list[str], str]:
    try:
        return requires(DISTRIBUTION) or [], metadata(DISTRIBUTION)["Requires-Python"]
    except PackageNotFoundError:
        return [], ">=3.11"
