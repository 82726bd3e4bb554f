"""Whether a machine is fit for a run: each check turns what was measured into one sentence that says what to do."""

import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cluster.ray_node import LONGEST_SOCKET, PREFIX

Level = Literal["ok", "warn", "fail"]
MIB, GIB = 1 << 20, 1 << 30
SOCKET_LIMIT_BYTES = 107  # of a path in AF_UNIX
LITTLE_MEMORY, TOO_LITTLE_MEMORY = 3 * GIB, 3 * GIB // 2  # available; the CartPole preset's 14 processes take 1.2 GiB
LITTLE_DISK, TOO_LITTLE_DISK = GIB, 100 * MIB
SLOW_DISK = 20 * MIB  # per second: a checkpoint would be felt
SHOWN = ("python", "torch", "ray", "gymnasium", "numpy")
COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


class Finding(NamedTuple):
    """What one check found; the advice follows `->`."""

    check: str
    level: Level
    said: str


class Requirement(NamedTuple):
    """A package that Starling needs: `ray[default]`, `>=2.60,<3`."""

    package: str
    rule: str

    @property
    def name(self) -> str:
        """The package without its extras."""
        return self.package.partition("[")[0]


class Temp(NamedTuple):
    """The folder for temporary files."""

    path: str
    error: str = ""  # why nothing can be made in it
    private: bool = True  # what is made in it can be read by its owner alone
    sticky: bool = True  # nobody else can rename what is made in it


class Disk(NamedTuple):
    """The disk that holds the runs."""

    path: str
    error: str = ""
    free_bytes: int = 0
    written_per_s: float = 0.0  # bytes


class Trial(NamedTuple):
    """What came of something that was tried in a process of its own."""

    answer: Mapping[str, Any] | None  # None: it failed, and says why
    said: str = ""


def requirements(lines: Sequence[str]) -> list[Requirement]:
    """Read what a distribution requires without its extras: `torch>=2.6,<2.14`."""
    needed = [re.match(r"([\w.-]+(?:\[[^]]*\])?)\s*(.*)", line) for line in lines if ";" not in line]
    return [Requirement(match[1], match[2].replace(" ", "")) for match in needed if match]


def within(version: str, rule: str) -> bool:
    """Say whether a release fulfils every part of a rule such as `>=2.6,<2.14`."""
    parts = re.findall(r"([<>=!]+)([\d.]+)", rule)
    return all(COMPARE[sign](_release(version), _release(bound)) for sign, bound in parts)


def versions(needed: Sequence[Requirement], found: Mapping[str, str | None], torch_build: str) -> Iterator[Finding]:
    """Compare installed packages with what is required; those that do not fit get a sentence each."""
    right = {}
    for requirement in needed:
        name, version = requirement.name, found.get(requirement.name)
        if version and within(version, requirement.rule):
            right[name] = version
        else:
            get = (
                "install that Python" if name == "python" else f"pip install '{requirement.package}{requirement.rule}'"
            )
            yield Finding("versions", "fail", f"{name} must be {requirement.rule}, got {version or 'nothing'} -> {get}")
    shown = [_with_build(name, right[name], torch_build) for name in SHOWN if name in right]
    others = len(right) - len(shown)
    if shown:
        yield Finding("versions", "ok", ", ".join(shown) + (f" and {others} more as required" if others else ""))


def machine(cores: int, total_bytes: int, available_bytes: int) -> Finding:
    """Judge cores and memory."""
    has = f"{cores} core{'s' * (cores != 1)}, {_size(total_bytes)} of memory, {_size(available_bytes)} available"
    if available_bytes < TOO_LITTLE_MEMORY:
        return Finding("machine", "fail", f"{has} -> end other programs: a small run takes 1.2 GiB")
    if available_bytes < LITTLE_MEMORY:
        return Finding("machine", "warn", f"{has} -> end other programs before a larger run")
    if cores < 2:
        return Finding("machine", "warn", f"{has} -> expect slow training: all roles share one core")
    return Finding("machine", "ok", has)


def shared_memory(free_bytes: int | None, need_bytes: int) -> Finding:
    """Judge /dev/shm, where Ray keeps its objects."""
    if free_bytes is None:
        return Finding("shared memory", "warn", "no /dev/shm -> Ray uses a file instead: expect slower messages")
    if free_bytes < need_bytes:
        what = f"/dev/shm has {_size(free_bytes)} free, Ray wants {_size(need_bytes)} and will use a slower file"
        return Finding("shared memory", "warn", f"{what} -> in a container: --shm-size 1g")
    return Finding("shared memory", "ok", f"/dev/shm {_size(free_bytes)} free")


def loopback(error: str) -> Finding:
    """Judge whether a port can be opened for this machine alone; no fixed one is needed."""
    if error:
        return Finding("loopback", "fail", f"no port of 127.0.0.1 can be opened: {error} -> bring the lo interface up")
    return Finding("loopback", "ok", "ports of 127.0.0.1 can be opened, no fixed one is needed")


def token(mode: int | None) -> Finding:
    """Judge who can read the token that other Ray clusters of this user share."""
    if mode is None:
        return Finding("token", "ok", "no ~/.ray/auth_token; each run makes a token of its own")
    if mode & 0o077:
        return Finding("token", "warn", "~/.ray/auth_token is readable by others -> chmod 600 ~/.ray/auth_token")
    return Finding("token", "ok", "~/.ray/auth_token is readable by you alone")


def temp_folder(temp: Temp) -> Finding:
    """Judge where each run makes its private folder for Ray."""
    longest = f"{temp.path}/{PREFIX}12345678/{LONGEST_SOCKET}"
    too_long = len(os.fsencode(longest)) - SOCKET_LIMIT_BYTES
    elsewhere = "-> set TMPDIR to a folder"
    if temp.error:
        return Finding("temp folder", "fail", f"{temp.path} cannot be written: {temp.error} {elsewhere} of yours")
    if too_long > 0:
        what = f"{temp.path} is {too_long} bytes too long for Ray's sockets {elsewhere} with a shorter path"
        return Finding("temp folder", "fail", what)
    if not temp.private:
        return Finding("temp folder", "fail", f"{temp.path} keeps no file private {elsewhere} on another file system")
    if not temp.sticky:
        what = f"anybody can replace files in {temp.path} -> chmod +t {temp.path}, or set TMPDIR"
        return Finding("temp folder", "warn", what)
    return Finding("temp folder", "ok", f"{temp.path} keeps files private, its path is short enough for sockets")


def runs_folder(disk: Disk) -> Finding:
    """Judge where the runs are written."""
    if disk.error:
        return Finding("runs", "fail", f"{disk.path} cannot be written: {disk.error} -> choose another with --runs")
    has = f"{disk.path}: {_size(disk.free_bytes)} free, writes {disk.written_per_s / MIB:,.0f} MiB/s"
    if disk.free_bytes < TOO_LITTLE_DISK:
        return Finding("runs", "fail", f"{has} -> make room, or choose another with --runs")
    if disk.free_bytes < LITTLE_DISK:
        return Finding("runs", "warn", f"{has} -> make room before a long run")
    if disk.written_per_s < SLOW_DISK:
        return Finding("runs", "warn", f"{has} -> choose a faster disk with --runs: checkpoints will be felt")
    return Finding("runs", "ok", has)


def environment(env: str, trial: Trial) -> Finding:
    """Judge whether an environment can be made and stepped."""
    if trial.answer is None:
        return Finding("environment", "fail", f"{trial.said} -> try it in Python, or another with --env")
    does = "observations {obs}, {actions}, {steps_per_s:,.0f} steps/s in one copy".format(**trial.answer)
    return Finding("environment", "ok", f"{env}: {does}")


def ray_start(trial: Trial) -> Finding:
    """Judge whether a Ray of our own starts, answers, and keeps to this machine and this user."""
    if trial.answer is None:
        return Finding(
            "ray", "fail", f"Ray does not start: {trial.said} -> starling train --runtime local needs no Ray"
        )
    if found := trial.answer["open"]:
        others = f"Ray is open to other machines at {', '.join(found)}"
        return Finding("ray", "fail", f"{others} -> no run will start; --runtime local needs no Ray")
    if not trial.answer["private"]:
        return Finding(
            "ray", "fail", "Ray opened its folder to other users -> starling train --runtime local needs no Ray"
        )
    did = "Ray started in {start_s:.1f} s, its first actor answered after {answer_s:.1f} s more, all on loopback"
    return Finding("ray", "ok", did.format(**trial.answer))


def _release(version: str) -> tuple[int, ...]:
    """Return `2.13.0+cpu` as (2, 13): zeros at the end change nothing."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _with_build(name: str, version: str, torch_build: str) -> str:
    return f"torch {version.partition('+')[0]} ({torch_build})" if name == "torch" else f"{name} {version}"


def _size(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
