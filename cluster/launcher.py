"""The launcher: starts a run's supervisor, hears what it tells, and starts another one if it dies. Imports no Ray."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cluster.config import Config, dump
from cluster.contents import Contents, shard_states
from cluster.frames import Inbox, Orders, Refusal, send
from cluster.ray_node import OBJECT_STORE_BYTES, RayNode
from cluster.report import CheckpointDue, Event, Noted, Outcome, Sample
from cluster.roles import FRESH, Start
from cluster.rows import as_row
from cluster.signals import undisturbed
from starling import errors
from starling.errors import RoleError
from starling.params import Params

MAX_SUPERVISORS = 5
POLL_S = 0.1
STOP_LIMIT_S = 24.0  # from the request to stop to the supervisor's last word; longer than its own limits together
EXIT_LIMIT_S = 3.0  # from a supervisor's last word to its exit
LOG_TAIL_BYTES = 4_000


class Launcher:
    """One run's supervisors, one after the other, and where the next one would go on."""

    def __init__(
        self,
        config: Config[Any],
        report: Callable[[Event], None],
        stopped: Callable[[], bool],
        start: Start,
        store_bytes: int = OBJECT_STORE_BYTES,
    ) -> None:
        self._report = report
        self._store_bytes = store_bytes
        self._stopped = stopped
        self._orders = Orders(
            config=dump(config),
            launched_at=time.monotonic(),
            states=start.states,
            initial=Params.of(start.arrays) if start.arrays else None,
            folder=start.folder,
            contents=start.contents,
            **as_row(start.past),
        )
        self._restored: set[str] = set()  # shards that held what they were to begin with
        self._outcome: Outcome | None = None

    def run(self) -> Outcome:
        """Return how the run ended; only a supervisor that was killed or crashed is followed by another."""
        for attempt in range(1, MAX_SUPERVISORS + 1):
            code, log = self._supervise()
            if self._outcome is not None:
                return self._outcome
            self._note("supervisor_lost", attempt=attempt, exit_code=code, log=log)
            self._orders = replace(self._orders, contents=next_contents(self._orders, self._restored))
            if self._stopped():
                return self._cut_short()
        raise RoleError(
            f"the supervisor ended {attempt} times without an outcome, the last time with code {code}; "
            "see events.jsonl in the run folder"
        )

    def _cut_short(self) -> Outcome:
        """Return what is known of a run that was asked to stop and whose supervisor did not say how it ended."""
        orders = self._orders
        return Outcome(
            reason="interrupted",
            env_steps=orders.env_steps,
            updates=orders.updates,
            train_s=orders.elapsed_s,
            params_sha256="",
            best_mean=orders.best_mean,
        )

    def _supervise(self) -> tuple[int, str]:
        node = RayNode.prepare(self._store_bytes)
        read_end, write_end = os.pipe()
        log = node.folder / "supervisor.log"
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "cluster.supervisor", str(write_end), str(os.getpid())],
                    env=node.environment(os.environ),
                    cwd=node.folder,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    pass_fds=(write_end,),
                    start_new_session=True,  # the terminal's Ctrl-C is for the launcher alone
                )
            os.close(write_end)
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as orders:  # one that dies at once is followed by another
                send(orders.fileno(), self._orders)
            self._follow(process, read_end)
            return _ended(process), log.read_text("utf-8", "replace")[-LOG_TAIL_BYTES:]
        finally:
            with undisturbed():
                os.close(read_end)
                node.kill()
                node.remove()

    def _follow(self, process: "subprocess.Popen[bytes]", pipe: int) -> None:
        """Pass on what the supervisor tells until it has nothing more to say."""
        inbox = Inbox()
        asked_at: float | None = None
        while asked_at is None or time.monotonic() - asked_at < STOP_LIMIT_S:
            if asked_at is None and self._stopped():
                asked_at = time.monotonic()
                process.send_signal(signal.SIGTERM)
            if not select.select([pipe], [], [], POLL_S)[0]:
                continue
            data = os.read(pipe, 1 << 20)
            if not data:
                return
            for message in inbox.feed(data):
                self._hear(message)

    def _hear(self, message: Any) -> None:
        if isinstance(message, Outcome):
            self._outcome = message
            return
        if isinstance(message, Refusal):
            raise getattr(errors, message.kind)(message.sentence)
        if isinstance(message, Sample | CheckpointDue):
            counters = {name: getattr(message, name) for name in ("env_steps", "updates", "elapsed_s")}
            self._orders = replace(self._orders, **counters)
        if isinstance(message, Noted) and message.what == "replay_restored":
            self._restored.add(str(message.facts["role"]))
        if isinstance(message, CheckpointDue):
            self._orders = replace(self._orders, version=message.version, params=message.params)
            if message.states:
                self._orders = replace(self._orders, states=message.states, number=message.number, contents="newest")
            elif message.best:
                self._orders = replace(self._orders, best_mean=message.mean)
        self._report(message)

    def _note(self, what: str, **facts: Any) -> None:
        self._report(Noted(elapsed_s=self._orders.elapsed_s, what=what, facts=facts))


def next_contents(orders: Orders, restored: Collection[str]) -> Contents:
    """Return what the shards begin with under the next supervisor, when these were restored under the last ones.

    What belongs to the future that was given up stays out until every shard has let go of it. A move goes on, to no
    checkpoint yet: the shards know how far they got.
    """
    named = [name for name, state in shard_states(orders.states).items() if "snapshot" in state.meta]
    unfinished = orders.contents == "exact" and any(name not in restored for name in named)
    return orders.contents if unfinished or orders.contents.startswith("moved") else "newest"


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """Return a supervisor's exit code; one that has said its last word but does not go is killed."""
    try:
        return process.wait(timeout=EXIT_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def run_ray(
    config: Config[Any],
    report: Callable[[Event], None],
    stopped: Callable[[], bool],
    start: Start = FRESH,
    store_bytes: int = OBJECT_STORE_BYTES,
) -> Outcome:
    """Run every role in a Ray process of its own on this machine."""
    return Launcher(config, report, stopped, start, store_bytes).run()
