"""The supervisor: a run's Ray driver. It makes the roles, keeps them alive, and tells the launcher what they say.

Started by the launcher as `python -m cluster.supervisor PIPE`; it ends when the run is over, when it is asked to by
SIGTERM, or when the launcher is gone.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.envs import measure_spec
from cluster import user_folder
from cluster.config import Config, ReplayRun, parse
from cluster.contents import SHARD
from cluster.course import Course, Past
from cluster.figures import kind_of
from cluster.frames import Orders, Refusal, receive_orders, send
from cluster.inbox import Inbox, inbox_of
from cluster.members import START_LIMIT_S, Members
from cluster.ray_node import (
    FOLDER,
    MARK,
    OBJECT_STORE_BYTES,
    SPILLED,
    STORE,
    RayNode,
    open_listeners,
    processes_marked,
    spilled_bytes,
)
from cluster.report import Outcome
from cluster.roles import Newest, Start
from cluster.snapshots import disk_bytes, snapshot_name
from cluster.taking import LIMIT_S as SNAPSHOT_LIMIT_S
from cluster.taking import Snapshot
from cluster.topologies import arrangement_of
from starling import wire
from starling.errors import ClusterError, StarlingError
from starling.params import Params
from starling.spec import Spec
from starling.state import State, unpack_state
from starling.types import Array

TICK_S = 0.1  # every role is asked at each second one: an answer costs a millisecond on both sides
SERVER_LIMIT_S = 1.0
STATE_LIMIT_S = 5.0
LAST_SNAPSHOT_S = 8.0  # when the run ends; everything else waits for it
SNAPSHOT_POLL_S = 0.01
RESTORED_BYTES_PER_S = 20e6  # a slow disk's
RETRY_S = 1.0  # between attempts at a checkpoint that is due
LOGICAL_CPUS = 1000  # roles ask for a fraction each; the machine's own scheduler shares the cores


class Supervisor:
    """Watches the roles of one run until its course is over."""

    def __init__(
        self,
        members: Members,
        course: Course,
        config: Config[Any],
        spec: Spec,
        inbox: Inbox,
        in_no_checkpoint: bool = False,
    ) -> None:
        self._members = members
        self._course = course
        self._config = config
        self._spec = spec
        self._inbox = inbox
        self._arrangement = arrangement_of(config)
        self._retry_at = 0.0
        self._in_no_checkpoint = in_no_checkpoint  # that the shards hold what others held
        self._snapshot: Snapshot | None = None
        self._kept: dict[str, State] = {}  # what belongs to the snapshot that is being taken, and when it was
        self._moment: dict[str, Any] = {}
        self._spilled = 0  # bytes, when it was last told

    def run(self, stopped: Callable[[], bool]) -> Outcome:
        """Turn until the goal is reached, a budget is spent, or somebody asks to stop."""
        self._members.start()
        reason, checked = None, False
        while reason is None:
            time.sleep(TICK_S)
            self._hear(self._members.watch())
            if not checked and all(map(self._members.is_up, self._members.names())):
                require_loopback()  # again, now that every process is there
                checked = True
            self._course.sample(self._stats)
            self._inbox.feed(self._fill)
            self._tell_of_spilling()
            self._keep()
            reason = self._course.over(stopped())
        self._hear(self._members.stop())
        self._course.sample(self._stats, now=True)
        params = self._keep_at_the_end()
        if params is None and self._arrangement.learns == "learner":
            _, params = self._newest()
        return self._course.end(reason, params)

    def _tell_of_spilling(self) -> None:
        """Note each time it has doubled how much Ray moved to the disk: whoever needs it waits for a second or more."""
        spilled = spilled_bytes(Path(os.environ[FOLDER]))
        if spilled > 2 * self._spilled:
            self._spilled = spilled
            self._course.note("spilled", bytes=spilled, store_bytes=int(os.environ.get(STORE, OBJECT_STORE_BYTES)))

    def _keep(self) -> None:
        """Write a checkpoint that is due, when every role can be asked; what fails is tried again a little later."""
        if self._snapshot is not None:
            self._go_on_keeping(self._snapshot)
            return
        due = self._in_no_checkpoint or self._course.checkpoint_due(self._config.checkpoint.every)
        late = time.monotonic() >= self._retry_at
        keeps = self._arrangement.keeps
        if due and late and all(map(self._members.is_up, self._of(*keeps, SHARD))):
            self._begin_to_keep(self._states(), self._of(*keeps), SNAPSHOT_LIMIT_S)

    def _begin_to_keep(self, states: dict[str, State], needed: Sequence[str], limit_s: float) -> None:
        self._kept = states
        if any(name not in self._kept for name in needed):
            self._retry_at = time.monotonic() + RETRY_S
            return
        self._moment = self._course.moment()
        name = snapshot_name(self._course.number + 1)
        shards = {name: handle for name in self._of(SHARD) if (handle := self._members.handle(name)) is not None}
        self._snapshot = Snapshot(name, shards, time.monotonic, limit_s)

    def _go_on_keeping(self, snapshot: Snapshot) -> None:
        under_way = snapshot.is_under_way()
        if snapshot.failed:
            self._course.note("snapshot_failed", snapshot=snapshot.name, why=snapshot.failed)
            snapshot.drop()
            self._retry_at = time.monotonic() + RETRY_S
        elif not under_way:
            self._checkpoint(snapshot)
        if snapshot.failed or not under_way:
            self._snapshot = None

    def _checkpoint(self, snapshot: Snapshot, only_params: bool = False) -> Params:
        params = self._arrangement.params(self._config, self._spec, self._kept)
        if only_params:  # the last checkpoint still leads to all that the shards held
            return params
        self._in_no_checkpoint = False
        version = self._arrangement.version(self._kept)
        self._course.checkpoint(version, params, {**self._kept, **snapshot.states}, self._moment)
        return params

    def _keep_at_the_end(self) -> Params | None:
        """Write the last checkpoint, with what there is of the shards; a learner that does not answer leaves none.

        Its last state may be older than the last checkpoint; that of a slice is a second old.
        """
        self._snapshot = None
        states = self._last_heard("param_server") | self._states()
        self._begin_to_keep(states, self._of(self._arrangement.learns), LAST_SNAPSHOT_S)
        snapshot = self._snapshot
        if snapshot is None:
            return None
        while snapshot.is_under_way():
            time.sleep(SNAPSHOT_POLL_S)
        if snapshot.failed:
            self._course.note("snapshot_failed", snapshot=snapshot.name, why=snapshot.failed)
        missing = len(snapshot.states) < len(self._of(SHARD))
        return self._checkpoint(snapshot, only_params=missing and self._in_no_checkpoint)

    def _of(self, *kinds: str) -> list[str]:
        names = self._members.names()
        return [name for kind in kinds for name in names if kind_of(name) == kind]

    def _states(self) -> dict[str, State]:
        """Ask the roles that are kept beside the shards for their states; one that is down has none."""
        asked = self._of(*self._arrangement.keeps)
        return _unpacked((name, self._members.ask(name, "state", limit_s=STATE_LIMIT_S)) for name in asked)

    def _last_heard(self, kind: str) -> dict[str, State]:
        """Return the states that a kind of roles was last heard in, as they are kept for successors."""
        return _unpacked((name, self._members.kept(name)) for name in self._of(kind))

    def _hear(self, beats: dict[str, Any]) -> None:
        learns, counter = self._arrangement.learns, self._arrangement.counter
        updates = min(self._members.counts(name).get(counter, 0) for name in self._of(learns))
        self._course.advance(self._members.total("actor", "env_steps"), updates)
        for name, beat in beats.items():
            self._course.hear(int(name.partition("[")[2].rstrip("]")), beat.news)

    def _fill(self, shard: int, packed: Array, number: int) -> bool:
        return bool(self._members.ask(f"{SHARD}[{shard}]", "fill", packed, number, limit_s=SERVER_LIMIT_S))

    def _stats(self) -> dict[str, Any]:
        return {name: self._members.stats(name) for name in self._members.names()}

    def _newest(self) -> tuple[int, Params | None]:
        """Return the last published parameters, if any were published and their server still answers."""
        found = self._members.ask("param_server[0]", "fetch", 0, limit_s=SERVER_LIMIT_S)
        if found is None:
            return 0, None
        version, packed = found
        if isinstance(packed, list):
            try:
                packed = ray.get(packed[0], timeout=SERVER_LIMIT_S)
            except RayError:
                return 0, None
        return version, wire.decode_params(packed).copy()


def _unpacked(packed: Iterable[tuple[str, Array | None]]) -> dict[str, State]:
    return {name: unpack_state(state) for name, state in packed if state is not None}


def start_limit_s(folder: Path, role: str) -> float:
    """Return how long a role may take to start: a shard also reads what it is to serve."""
    if kind_of(role) != SHARD or not folder.name:
        return START_LIMIT_S
    return START_LIMIT_S + disk_bytes(folder) / RESTORED_BYTES_PER_S


class Stop:
    """True after SIGTERM, or when the launcher is gone."""

    def __init__(self, launcher: int) -> None:
        self._asked = False
        self._launcher = launcher
        signal.signal(signal.SIGTERM, self.handle)

    def __call__(self) -> bool:
        """Say whether the run shall stop."""
        return self._asked or os.getppid() != self._launcher

    def handle(self, number: int, frame: Any) -> None:
        """Remember a signal."""
        self._asked = True


def start_ray(folder: Path) -> None:
    """Start a Ray of our own; what it listens on is checked, since no promise of Ray's covers it."""
    try:
        ray.init(
            address="local",
            num_cpus=LOGICAL_CPUS,
            include_dashboard=False,
            object_store_memory=int(os.environ.get(STORE, OBJECT_STORE_BYTES)),
            object_spilling_directory=str(folder.parent / SPILLED),
            log_to_driver=False,
            configure_logging=False,
            namespace=os.environ[MARK],
            _temp_dir=str(folder),
        )
    except (RuntimeError, OSError, ConnectionError, ValueError) as error:
        raise ClusterError(f"Ray could not start on this machine: {error}; starling doctor says more") from error


def require_loopback() -> None:
    """End the run if any process of it listens to other machines."""
    if found := open_listeners(processes_marked(os.environ[MARK])):
        raise ClusterError(f"every listener must be on loopback, got {', '.join(found)}")


def supervise(orders: Orders, pipe: int, stopped: Stop) -> Outcome:
    """Make a run from its orders."""
    config = parse(orders.config)
    with ThreadPoolExecutor(1) as pool:
        measured = pool.submit(measure_spec, config.env)  # while Ray starts
        start_ray(Path(os.environ[FOLDER]))
        spec = measured.result()
    user_folder.enter()
    signal.signal(signal.SIGTERM, stopped.handle)  # Ray has put its own in place
    require_loopback()
    past = Past(
        env_steps=orders.env_steps,
        updates=orders.updates,
        elapsed_s=orders.elapsed_s,
        best_mean=orders.best_mean,
        number=orders.number,
    )
    course = Course(config.goal, partial(send, pipe), time.monotonic, past, orders.launched_at)
    newest = None
    if orders.params is not None and not orders.states:
        newest = Newest(orders.version, orders.updates, orders.params)
    initial = {} if orders.initial is None else dict(orders.initial.arrays())
    start = Start(
        past=past,
        states=orders.states,
        arrays=initial,
        newest=newest,
        folder=orders.folder,
        contents=orders.contents,
    )
    members = Members(time.monotonic, course.note, partial(start_limit_s, Path(orders.folder)))
    if isinstance(config, ReplayRun):
        start.replay.prepare(config.replay)
    arrangement_of(config).launch(members, config, spec, time.monotonic, start)
    inbox = inbox_of(orders.folder, config, spec, course.note, time.monotonic)
    return Supervisor(members, course, config, spec, inbox, start.replay.is_moved).run(stopped)


def main() -> int:
    """Run one supervisor; its last message is the outcome."""
    os.umask(0o077)
    user_folder.append_to_path(os.environ[user_folder.VARIABLE])
    pipe, launcher = map(int, sys.argv[1:])
    try:
        send(pipe, supervise(receive_orders(sys.stdin.fileno()), pipe, Stop(launcher)))
    except StarlingError as error:
        send(pipe, Refusal(kind=type(error).__name__, sentence=str(error)))
        return 1
    except BrokenPipeError:
        return 1  # nobody is left to tell
    finally:
        ray.shutdown()
        if os.getppid() != launcher:  # nobody else will put this away
            node = RayNode.of(os.environ)
            node.kill()
            node.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
