"""The supervisor: a run's Ray driver. It makes the roles, keeps them alive, and tells the launcher what they say.

Started by the launcher as `python -m cluster.supervisor PIPE`; it ends when the run is over, when it is asked to by
SIGTERM, or when the launcher is gone.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.envs import measure_spec
from cluster import launch, user_folder
from cluster.config import Config, parse
from cluster.course import Course, Past
from cluster.figures import kind_of
from cluster.frames import Orders, Refusal, receive_orders, send
from cluster.members import Members
from cluster.ray_node import FOLDER, MARK, OBJECT_STORE_BYTES, SPILLED, STORE, RayNode, open_listeners, processes_marked
from cluster.report import Outcome
from cluster.roles import Newest, Start, acting_params
from starling import wire
from starling.errors import ClusterError, StarlingError
from starling.params import Params
from starling.spec import Spec
from starling.state import State, unpack_state

TICK_S = 0.05
SERVER_LIMIT_S = 1.0
STATE_LIMIT_S = 5.0
KEPT = ("learner", "replay_server", "evaluator")
"""Kinds of roles that a checkpoint keeps. The learner is asked first: a shard that answers later knows every window of
which the learner's state speaks."""
RETRY_S = 1.0  # between attempts at a checkpoint that is due
LOGICAL_CPUS = 1000  # roles ask for a fraction each; the machine's own scheduler shares the cores


class Supervisor:
    """Watches the roles of one run until its course is over."""

    def __init__(self, members: Members, course: Course, config: Config[Any], spec: Spec) -> None:
        self._members = members
        self._course = course
        self._config = config
        self._spec = spec
        self._retry_at = 0.0

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
            self._keep_if_due()
            reason = self._course.over(stopped())
        self._hear(self._members.stop())
        self._course.sample(self._stats, now=True)
        params = self._checkpoint(self._states(), whatever_is_there=True)
        if params is None:
            _, params = self._newest()
        return self._course.end(reason, params)

    def _keep_if_due(self) -> None:
        """Write a checkpoint that is due, when every role can be asked; what fails is tried again a little later."""
        due = self._course.checkpoint_due(self._config.checkpoint.every) and time.monotonic() >= self._retry_at
        if not due or not all(map(self._members.is_up, self._kept())):
            return
        if self._checkpoint(self._states()) is None:
            self._retry_at = time.monotonic() + RETRY_S

    def _kept(self) -> list[str]:
        names = self._members.names()
        return [name for kind in KEPT for name in names if kind_of(name) == kind]

    def _states(self) -> dict[str, State]:
        """Ask the roles that are kept for their states."""
        kept = self._kept()
        packed = {name: self._members.ask(name, "state", limit_s=STATE_LIMIT_S) for name in kept}
        return {name: unpack_state(state) for name, state in packed.items() if state is not None}

    def _checkpoint(self, states: dict[str, State], whatever_is_there: bool = False) -> Params | None:
        """Have the run kept if all roles answered; a role that is down is waited for, unless the run is over."""
        learner = states.get("learner[0]")
        missing = [name for name in self._kept() if name not in states]
        if learner is None or (missing and not whatever_is_there):
            return None
        params = acting_params(self._config, self._spec, learner)
        self._course.checkpoint(learner.meta["version"], params, states)
        return params

    def _hear(self, beats: dict[str, Any]) -> None:
        self._course.advance(self._members.total("actor", "env_steps"), self._members.total("learner", "updates"))
        for name, beat in beats.items():
            self._course.hear(int(name.partition("[")[2].rstrip("]")), beat.news)

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
    members = Members(time.monotonic, course.note)
    newest = None
    if orders.params is not None and not orders.states:
        newest = Newest(orders.version, orders.updates, orders.params)
    initial = {} if orders.initial is None else dict(orders.initial.arrays())
    start = Start(past=past, states=orders.states, arrays=initial, newest=newest)
    launch.replay(members, config, spec, time.monotonic, start)
    return Supervisor(members, course, config, spec).run(stopped)


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
