"""Ray on this machine, closed by default: loopback only, a token of its own, a private folder. Imports no Ray."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil

from cluster import user_folder
from cluster.cores import ONE_THREAD

PREFIX = "starling-"
MARK = "STARLING_RUN_MARK"
"""Every process of a run carries this in its environment, so that none can be left behind unseen."""

FOLDER = "STARLING_RAY_FOLDER"
"""Where the supervisor finds the folder that is meant for its Ray."""

OBJECT_STORE_BYTES = 256 << 20
"""What a run's Ray may keep in /dev/shm, if its plan does not need more."""

STORE = "STARLING_RAY_STORE_BYTES"
"""Where the supervisor finds how much that is."""

SPILLED = "spilled"
"""The folder, beside Ray's own, to which Ray moves objects when its store is full."""

RAY_FOLDER = "r"
"""Ray opens its own folder to everybody (mode 0777), so it gets one inside of ours; short, for the sockets' sake."""

LONGEST_SOCKET = f"{RAY_FOLDER}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Ray's longest socket path, below the folder."""

KILL_ROUNDS = 5
"""A process that was about to start another one when they were listed has left that one behind."""


@dataclass(frozen=True, slots=True)
class RayNode:
    """What a run's own Ray needs: a short private folder (socket paths are limited to 107 bytes) and a token."""

    folder: Path
    mark: str
    store_bytes: int = OBJECT_STORE_BYTES

    @staticmethod
    def prepare(store_bytes: int = OBJECT_STORE_BYTES) -> "RayNode":
        """Make the folder, readable by its owner alone, and the token in it."""
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        token = os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(token, "w") as file:
            file.write(secrets.token_hex(32))
        return RayNode(folder, secrets.token_hex(8), store_bytes)

    @staticmethod
    def of(environment: Mapping[str, str]) -> "RayNode":
        """Return the node to which a process with this environment belongs."""
        return RayNode(Path(environment[FOLDER]).parent, environment[MARK])

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the supervisor; Ray reads it when it is imported."""
        inherited = {name: value for name, value in base.items() if not name.startswith("RAY_")}
        return {
            **inherited,
            MARK: self.mark,
            user_folder.VARIABLE: base.get(user_folder.VARIABLE, os.getcwd()),
            FOLDER: str(self.folder / RAY_FOLDER),
            STORE: str(self.store_bytes),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # an odd name for: listen on loopback only
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_timeout_ms_task_wait_for_death_info": "100",
            "RAY_max_direct_call_object_size": str(1 << 20),
            "SPT_NOENV": "1",  # else Ray's agents, which name themselves, write over the mark
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # roles without a GPU share must still see it if told to
            **ONE_THREAD,
        }

    def kill(self) -> int:
        """End every process of the run at once, the caller's own left out, and return how many there were."""
        ended = set[psutil.Process]()
        for _ in range(KILL_ROUNDS):
            alive = [process for process in processes_marked(self.mark) if process.pid != os.getpid()]
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, timeout=5)
            ended.update(alive)
            if not alive:
                break
        return len(ended)

    def remove(self) -> None:
        """Delete the folder; nothing in it outlives the run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def spilled_bytes(folder: Path) -> int:
    """Return what Ray has moved from its full store to the disk at this moment: it makes everything slow."""
    return sum(size_of(file) for file in (folder.parent / SPILLED).rglob("*"))


def size_of(path: Path) -> int:
    """Return a file's size, or 0 if it is gone."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def processes_marked(mark: str) -> Iterator[psutil.Process]:
    """Yield every living process of a run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended meanwhile, or another user's: not ours


def open_listeners(processes: Iterator[psutil.Process]) -> list[str]:
    """Return `name pid address:port` of every socket that listens elsewhere than on loopback."""
    found = []
    for process in processes:
        try:
            sockets = process.net_connections(kind="inet")
            name = process.name()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        for socket in sockets:
            if socket.status == psutil.CONN_LISTEN and not is_loopback(socket.laddr.ip):
                found.append(f"{name} {process.pid} {socket.laddr.ip}:{socket.laddr.port}")
    return found


def is_loopback(address: str) -> bool:
    """Say whether an address is reached from this machine alone, IPv4 in IPv6's clothes included."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback
