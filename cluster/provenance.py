"""What a run was started with: versions, machine, commit and command, so that it can be repeated."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

DISTRIBUTION = "starling-rl"
PACKAGES = (DISTRIBUTION, "torch", "ray", "gymnasium", "numpy")


def provenance(command: Sequence[str], started: datetime) -> dict[str, Any]:
    """Return what `env.json` holds; the packages' versions are read without importing them."""
    return {
        "started": started.isoformat(timespec="microseconds"),
        "command": list(command),
        "python": sys.version.split()[0],
        "packages": {name: installed(name) for name in PACKAGES},
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "pid": os.getpid(),
        "commit": commit(Path(__file__).parent),
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
    git = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
