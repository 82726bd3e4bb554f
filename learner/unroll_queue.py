"""The queue of the `queue` topology: unrolls on their way from the actors to the learner, oldest first."""

from collections import deque
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import Any

from learner.config import QueueConfig
from learner.inlet import Heard, version_of
from starling.metrics import Clock
from starling.types import InsertReply, Room, Unroll

FULL = "its queue is full"
MOST_S = 0.05  # between questions for a place, however slow the learner is
OTHERS_S = 0.005  # the same, while it is other actors' unrolls that are missing
SMOOTHING = 0.1  # the part of a new update's time in the average


@dataclass(frozen=True, slots=True)
class Held:
    """An unroll that waits to be learned from."""

    unroll: Unroll
    version: int  # of its oldest row
    uses: int  # that are left


class UnrollQueue:
    """Holds at most `capacity` unrolls, and gives each to the learner `uses` times. Never waits.

    The places are shared out among the actors, so none can fill the queue alone, and credit that an actor was given
    is good whatever the others do. Unrolls leave in the order in which they came; one that is to be used again goes to
    the back. None that is more than `max_lag` versions older than the learner is ever taken. A learner that waits is
    handed its unrolls when the last of them comes, so that their places are free before their actor is answered. Any
    thread may insert; one takes.
    """

    def __init__(self, config: QueueConfig, unrolls: int, actors: int, clock: Clock) -> None:
        assert unrolls <= config.capacity, "an update must fit the queue"
        self._config = config
        self._unrolls = unrolls
        self._actors = actors
        self._clock = clock
        self._lock = Lock()
        self._came = Event()
        self._came.set()  # nothing has been missed yet
        self._held: deque[Held] = deque()
        self._heard = Heard()
        self._version = 0  # of the learner, when it last asked
        self._is_awaited = False  # since it found too few
        self._handed: list[Held] = []  # what it was given then, and has not taken yet
        self._taken_at: float | None = None  # for the update that is being made
        self._update_s = 0.0  # on average; what the learner waits before is not in it
        self._counts = {"unrolls_stale": 0, "unrolls_refused": 0}

    def insert(self, unroll: Unroll) -> InsertReply:
        """Take one unroll, unless it came before, or its actor was replaced or has no place left."""
        with self._lock:
            accepted = self._room(unroll.actor) > 0 and self._heard.is_new(unroll)
            if accepted:
                self._held.append(Held(unroll, version_of(unroll), self._config.uses))
                self._hand_over()
            else:
                self._counts["unrolls_refused"] += 1
            room = self._credit(unroll.actor)
        return InsertReply(credit=room.credit, accepted=accepted, waits=room.waits, ask_after_s=room.ask_after_s)

    def credit(self, actor: int) -> Room:
        """Return how many more unrolls this actor may send."""
        with self._lock:
            return self._credit(actor)

    def take(self, version: int) -> list[Unroll] | str:
        """Return the oldest unrolls for a learner at this version, or the reason why there are not enough."""
        with self._lock:
            now = self._note_pace()
            if version != self._version:  # what was given for another may be too old by now
                self._held.extendleft(reversed(self._handed))
                self._handed.clear()
            self._version, self._is_awaited = version, True
            self._hand_over()
            if not self._handed:
                self._came.clear()
                return f"learner waits for unrolls: {len(self._held)} of {self._unrolls} are there"
            taken, self._handed, self._is_awaited = self._handed, [], False
            self._held.extend(replace(held, uses=held.uses - 1) for held in taken if held.uses > 1)
            self._taken_at = now
        return [held.unroll for held in taken]

    def wait(self, timeout_s: float) -> None:
        """Return when the unrolls that were missing have come, or after this time."""
        self._came.wait(timeout_s)

    def clear(self) -> None:
        """Begin anew, and empty: what was here is played again."""
        with self._lock:
            self._held.clear()
            self._handed.clear()
            self._is_awaited = False
            self._heard.clear()

    def stats(self) -> dict[str, Any]:
        """Return what was dropped, and how full it is."""
        with self._lock:
            return {"counts": dict(self._counts), "gauges": {"queued": float(len(self._held))}}

    def _hand_over(self) -> None:
        """Give a learner that waits what it waits for, if that is there."""
        if not self._is_awaited or self._handed:
            return
        self._drop_stale()
        if len(self._held) >= self._unrolls:
            self._handed = [self._held.popleft() for _ in range(self._unrolls)]
            self._came.set()

    def _room(self, actor: int) -> int:
        kept = [*self._held, *(held for held in self._handed if held.uses > 1)]  # these come back
        return self._share(actor) - sum(held.unroll.actor == actor for held in kept)

    def _share(self, actor: int) -> int:
        share, rest = divmod(self._config.capacity, self._actors)
        return share + (actor < rest)

    def _credit(self, actor: int) -> Room:
        room = self._room(actor)
        return Room(room) if room > 0 else Room(0, FULL, self._ask_after_s())

    def _ask_after_s(self) -> float:
        """Return the time until half of what waits was learned from: a learner that can go on does not starve."""
        if len(self._held) < self._unrolls:
            return OTHERS_S
        updates = max(0.5, sum(held.uses for held in self._held) / self._unrolls / 2)
        return min(MOST_S, self._update_s * updates)

    def _drop_stale(self) -> None:
        if not self._config.max_lag:
            return
        fresh = deque(held for held in self._held if self._version - held.version <= self._config.max_lag)
        self._counts["unrolls_stale"] += len(self._held) - len(fresh)
        self._held = fresh

    def _note_pace(self) -> float:
        """Take in how long the last update took, if one was made since the last look; return the time."""
        now = self._clock()
        if self._taken_at is not None:
            self._update_s += SMOOTHING * (now - self._taken_at - self._update_s)
            self._taken_at = None
        return now
