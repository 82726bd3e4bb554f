"""The lineup of the `lockstep` topology: an update takes one unroll of its version from every actor."""

from threading import Event, Lock
from typing import Any

from learner.inlet import Heard, version_of
from starling.metrics import Clock
from starling.types import InsertReply, Room, Unroll


class Lineup:
    """Holds at most one unroll of each actor, and gives all of them at once when they are of the learner's version.

    Others are dropped and counted: an actor plays once by each version, so it will send one of this version, and one
    that was replaced plays it anew. Any thread may insert; one takes.
    """

    def __init__(self, actors: int, clock: Clock) -> None:
        self._actors = actors
        self._clock = clock
        self._lock = Lock()
        self._came = Event()
        self._held: dict[int, tuple[int, Unroll]] = {}  # by actor, with the version
        self._heard = Heard()
        self._version, self._since = 0, clock()  # what was asked for last, and since when
        self._counts = {"unrolls_stale": 0, "unrolls_refused": 0}

    def insert(self, unroll: Unroll) -> InsertReply:
        """Take one unroll, unless it came before, or its actor was replaced or has a newer one here already."""
        version = version_of(unroll)
        with self._lock:
            there = self._held.get(unroll.actor)
            accepted = self._heard.is_new(unroll) and (there is None or there[0] < version)
            if accepted:
                self._counts["unrolls_stale"] += there is not None
                self._held[unroll.actor] = version, unroll
                self._came.set()
            else:
                self._counts["unrolls_refused"] += 1
        return InsertReply(credit=1, accepted=accepted)

    def credit(self, actor: int) -> Room:
        """Return 1: who waits for a version before it plays sends no more than one."""
        return Room(1)

    def take(self, version: int) -> list[Unroll] | str:
        """Return every actor's unroll of this version, in the order of the actors, or say whose is missing."""
        with self._lock:
            if version != self._version:
                self._version = version
                self._since = self._clock()
            stale = [actor for actor, (of, _) in self._held.items() if of != version]
            for actor in stale:
                del self._held[actor]
            self._counts["unrolls_stale"] += len(stale)
            missing = [actor for actor in range(self._actors) if actor not in self._held]
            if missing:
                self._came.clear()
                names = ", ".join(f"actor[{actor}]" for actor in missing)
                passed = self._clock() - self._since
                return f"learner waits for unrolls of version {version} from {names}, for {passed:.0f} s"
            return [self._held.pop(actor)[1] for actor in range(self._actors)]

    def wait(self, timeout_s: float) -> None:
        """Return when an unroll has come since one was missing, or after this time."""
        self._came.wait(timeout_s)

    def clear(self) -> None:
        """Begin anew, and empty: what was here is played again."""
        with self._lock:
            self._held.clear()
            self._heard.clear()

    def stats(self) -> dict[str, Any]:
        """Return what was dropped, and how many actors have sent their unroll."""
        with self._lock:
            return {"counts": dict(self._counts), "gauges": {"queued": float(len(self._held))}}
