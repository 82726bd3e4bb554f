"""What a run was started with: versions, machine, commit and command, so that it can be repeated."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

DISTRIBUTION = "starling-rl"
PACKAGES = (DISTRIBUTION, "torch", "ray", "gymnasium", "numpy")
CODE = ("starling", "actors", "learner", "replay_server", "param_server", "cluster", "pyproject.toml")
CHECKOUT = Path(__file__).parents[1]


def provenance(command: Sequence[str], started: datetime) -> dict[str, Any]:
    """Return what `env.json` holds; the packages' versions are read without importing them."""
    return {
        "started": started.isoformat(timespec="microseconds"),
        "command": list(command),
        "python": sys.version.split()[0],
        "packages": {name: installed(name) for name in PACKAGES},
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": cores(),
        "cpu": cpu_model(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "pid": os.getpid(),
        "commit": commit(CHECKOUT),
    }


def processor() -> dict[str, Any]:
    """Return what a measurement depends on: the processor's name and the memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": names[0] if names else platform.processor(), "memory_bytes": memory}


def installed(name: str) -> str | None:
    """Return a package's version, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit(checkout: Path) -> str | None:
    """Return the commit of the checkout, marked when files were changed since, or None outside of one."""
    return _git(checkout, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


class Code(NamedTuple):
    """What runs are made of, whatever happened to documents and tests since."""

    commit: str | None  # the last one that changed the code; None outside of a checkout
    dirty: bool  # whether files differ from it


def code_version(checkout: Path) -> Code:
    """Return which code a checkout holds."""
    last = _git(checkout, "log", "-1", "--format=%H", "--", *CODE)
    return Code(last or None, bool(last and _git(checkout, "status", "--porcelain", "--", *CODE)))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    """Return the processor's name as the kernel gives it, or its architecture where it gives none."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        names = []
    return names[0].strip() if names else platform.machine()


def _git(checkout: Path, *args: str) -> str | None:
    git = ["git", "-C", str(checkout), *args]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
