"""Ray handles as the Protocols that roles know: bounded, in order, and every wait names the role waited for."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError

from starling import wire
from starling.errors import RoleError
from starling.metrics import Clock
from starling.params import Params
from starling.types import InsertReply, Room, SampleReply, SampleRequest, Unroll

ANSWER_LIMIT_S = 90.0  # longer than a role may take to start, or to be found hanging and be replaced
OBJECT_LIMIT_S = 2.0  # to copy parameters out of the object store
CREDIT_EVERY_S = 0.01  # between questions for insert credit
FETCH_EVERY_S = 0.02  # between questions for newer parameters
FETCH_SOON_S = 0.001  # the same, where an unroll is learned from soon and should be by the newest ones
FETCH_RARELY_S = 0.1  # the same, where versions are waited for that come seconds apart
MAX_PUBLISHING = 2  # versions on their way to the parameter server
MOVE_ON_S = 15.0  # that a writer waits for its own shard before it goes to another one

ENDED = (RayActorError, OutOfMemoryError)
"""What an answer raises whose process is no more: it died, or Ray ended it for want of memory"""


class Peer(NamedTuple):
    """A role as its neighbours reach it; a re-created role is a new handle, and one that is not there yet is None."""

    role: str
    handle: Any
    generation: int


class Lost:
    """Stands for an answer that will never come."""


LOST = Lost()


class Line:
    """Calls in flight to one role: each gets one answer, in the order of the calls.

    When the role dies, the answers still owed are LOST, and nothing is sent until the supervisor connects its
    successor. A call that outlives the limit is an error of the caller's, which names the role. Used by one thread,
    `connect` excepted.
    """

    def __init__(self, peer: Peer, clock: Clock, limit_s: float = ANSWER_LIMIT_S) -> None:
        self._peer = peer
        self._next: deque[Peer] = deque(maxlen=1)  # a deque, since taking from it is one step for all threads
        self._clock = clock
        self._limit_s = limit_s
        self._flying: deque[tuple[Any, float]] = deque()
        self._owed_lost = 0
        self._down_since = None if peer.handle is not None else clock()
        self.lost = 0

    def connect(self, peer: Peer) -> None:
        """Talk to this successor from the next call on; may be called from another thread."""
        self._next.append(peer)

    @property
    def generation(self) -> int:
        """Return which incarnation of the role is talked to."""
        return self._peer.generation

    def call(self, method: str, *args: Any) -> None:
        """Send a call; its answer comes through `answers`, LOST if the role is down."""
        self._reconnect()
        self.send(method, *args)

    def send(self, method: str, *args: Any) -> None:
        """Send a call to the incarnation that was last talked to, whoever has been connected since.

        So nothing overtakes what must be sent again: its loss is heard before the successor is.
        """
        if self._down_since is not None:
            self._owed_lost += 1
        else:
            self._flying.append((getattr(self._peer.handle, method).remote(*args), self._clock()))

    def answers(self, ready: set[Any] | None = None) -> list[Any]:
        """Return the answers that have come, without waiting; `ready` are those of all lines, if somebody looked."""
        self._reconnect()
        come = self._take_lost()
        if ready is None:
            ready = ready_of(self.in_flight())
        while self._flying and self._flying[0][0] in ready:
            try:
                come.append(ray.get(self._flying[0][0]))
                self._flying.popleft()
            except (*ENDED, ObjectLostError):
                self._give_up()
                come += self._take_lost()
        if self._flying and self._clock() - self._flying[0][1] > self._limit_s:
            raise RoleError(
                f"{self._peer.role} has not answered for {self._limit_s:.0f} s; it is neither dead nor replaced"
            )
        return come

    def waits(self) -> str:
        """Say who must come back before anything can be sent; empty when it can."""
        self._reconnect()
        return "" if self._down_since is None else f"{self._peer.role}, down for {self.down_s:.0f} s"

    @property
    def role(self) -> str:
        """Return who is talked to, whichever incarnation."""
        return self._peer.role

    @property
    def down_s(self) -> float | None:
        """Return for how long the incarnation that was last talked to has been down; None: it is not."""
        return None if self._down_since is None else self._clock() - self._down_since

    def in_flight(self) -> list[Any]:
        """Return what `ray.wait` can wait for."""
        return [reference for reference, _ in self._flying]

    def __len__(self) -> int:
        return len(self._flying)

    def _take_lost(self) -> list[Any]:
        lost, self._owed_lost = self._owed_lost, 0
        return [LOST] * lost

    def _give_up(self) -> None:
        self.lost += len(self._flying)
        self._owed_lost += len(self._flying)
        self._flying.clear()
        self._down_since = self._clock()

    def _reconnect(self) -> None:
        if not self._next:
            return
        self._give_up()
        self._peer, self._down_since = self._next.popleft(), None


def ready_of(flying: list[Any]) -> set[Any]:
    """Return which calls have been answered: one look for all of them, since looking is what costs."""
    return set(ray.wait(flying, num_returns=len(flying), timeout=0)[0]) if flying else set()


class RemoteSink:
    """An actor's way to the shards, or to the learner: few unrolls at a time, each kept until it is acknowledged.

    It sends none without credit: each one that it sends takes from what it was told last.

    What its shard had not acknowledged when it died is sent again to the successor, before anything new: that one
    knows what its predecessor stored, so nothing comes twice. When the shard stays down, the writer drops what was
    pending, counts it, and goes on with the next shard that is up, until its own one, the first, is back; the
    streams are cut at each move, since their sequence does not continue there.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        clock: Clock,
        in_flight: int = 2,
        move_on_s: float = MOVE_ON_S,
        at_first: int = 2,  # unrolls that may be sent before anything was answered
        pack: Callable[[Unroll], Any] = wire.encode_unroll,
    ) -> None:
        self.lines = list(lines)
        self._line = self.lines[0]
        self._clock = clock
        self._in_flight = in_flight
        self._move_on_s = move_on_s
        self._pending: deque[Any] = deque()  # packed unrolls, in order
        self._sent = 0  # of those
        self._counts = dict.fromkeys(("unrolls_unanswered", "unrolls_refused", "unrolls_given_up", "shards_changed"), 0)
        self._actor = 0  # who writes
        self._credit = self._at_first = at_first
        self._pack = pack
        self._lacks = ""  # what is waited for there
        self._ask_at = -inf  # for credit

    @property
    def counts(self) -> dict[str, int]:
        """Return what happened to unrolls on their way."""
        return dict(self._counts)

    def insert(self, unroll: Unroll) -> None:
        """Send one unroll."""
        self._actor = unroll.actor
        self._pending.append(self._pack(unroll))
        self._credit -= 1
        self._send()

    def must_wait(self) -> str:
        """Wait for acknowledgements when too many are missing, and for credit when the learner is behind."""
        self._hear()
        self._choose_shard()
        self._send()
        role, down_s = self._line.role, self._line.down_s
        if down_s is not None:
            return f"{role}, down for {down_s:.0f} s"
        if len(self._pending) >= self._in_flight or (self._pending and self._can_go_home()):
            return f"{role} to acknowledge"
        if self._credit > 0:
            return ""
        if self._pending:
            return f"{role} to acknowledge"  # and to say how much more it takes
        if not len(self._line) and self._clock() >= self._ask_at:
            self._line.send("credit", self._actor)
        return f"{role} ({self._lacks})" if self._lacks else f"insert credit from {role}"

    def _hear(self) -> None:
        for answer in self._line.answers():
            if answer is LOST:  # and with it everything that was in flight
                self._counts["unrolls_unanswered"] += self._sent
                self._sent = 0
                self._credit, self._lacks = (
                    self._at_first - len(self._pending),
                    "",
                )  # a successor says itself how much it takes
            else:
                self._note(answer)

    def _note(self, answer: InsertReply | Room) -> None:
        if isinstance(answer, InsertReply):
            self._pending.popleft()
            self._sent -= 1
            self._counts["unrolls_refused"] += not answer.accepted
        self._credit, self._lacks = answer.credit - len(self._pending), answer.waits
        self._ask_at = self._clock() + (answer.ask_after_s or CREDIT_EVERY_S)

    def _send(self) -> None:
        while self._sent < len(self._pending) and self._line.down_s is None:
            self._line.send("insert", self._pending[self._sent])
            self._sent += 1

    def _choose_shard(self) -> None:
        """Go home as soon as nothing is pending elsewhere, or on to the next shard from one that stays down."""
        down_s = self._line.down_s
        if self._can_go_home() and (not self._pending or down_s is not None):
            self._move_to(self.lines[0])
        elif down_s is not None and down_s > self._move_on_s:
            here = self.lines.index(self._line)
            others = self.lines[here + 1 :] + self.lines[:here]
            if up := [line for line in others if not line.waits()]:
                self._move_to(up[0])

    def _can_go_home(self) -> bool:
        return self._line is not self.lines[0] and not self.lines[0].waits()

    def _move_to(self, line: Line) -> None:
        self._counts["unrolls_given_up"] += len(self._pending)  # here they might come twice
        self._counts["shards_changed"] += 1
        self._pending.clear()
        self._sent = 0
        self._line = line
        self._credit, self._lacks = self._at_first, ""
        line.answers()  # of questions that were asked when it was left


class RemoteReplay:
    """The learner's way to all shards; learning goes on without those that are down."""

    def __init__(self, peers: Sequence[Peer], clock: Clock, generation: int) -> None:
        self.lines = [Line(peer, clock) for peer in peers]
        self._generation = generation

    @property
    def num_shards(self) -> int:
        """How many shards there are, those that are down included."""
        return len(self.lines)

    def request(self, shard: int, request: SampleRequest) -> None:
        """Ask one shard."""
        self.lines[shard].call("sample", wire.encode_request(replace(request, generation=self._generation)))

    def replies(self) -> list[tuple[int, SampleReply | None]]:
        """Return the answers that have come, None for those that never will."""
        ready = ready_of([reference for line in self.lines for reference in line.in_flight()])
        return [
            (shard, None if answer is LOST else wire.decode_reply(answer))
            for shard, line in enumerate(self.lines)
            for answer in line.answers(ready)
        ]


class RemoteParams:
    """The way to the parameter server: always one question in flight, so asking costs no waiting.

    Nobody asks soon for the first version: a learner takes seconds to start, and needs the processor to do so.
    """

    def __init__(self, peer: Peer, clock: Clock, every_s: float = FETCH_EVERY_S) -> None:
        self.lines = [Line(peer, clock)]
        self._line = self.lines[0]
        self._clock = clock
        self._every_s = every_s
        self._asked = -inf
        self._newest: tuple[int, Params] | None = None

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        """Return the newest version that has arrived, if it is newer."""
        for answer in self._line.answers():
            if answer is not None and answer is not LOST:
                self._take(*answer)
        every_s = self._every_s if self._newest else max(self._every_s, FETCH_EVERY_S)
        if not len(self._line) and not self._line.waits() and self._clock() - self._asked >= every_s:
            self._asked = self._clock()
            self._line.call("fetch", max(newer_than, self._newest[0] if self._newest else 0))
        if self._newest is not None and self._newest[0] > newer_than:
            return self._newest
        return None

    def _take(self, version: int, packed: Any) -> None:
        if isinstance(packed, list):
            try:
                packed = ray.get(packed[0], timeout=OBJECT_LIMIT_S)
            except RayError:
                return  # its owner died meanwhile: the next question is for its successor
        self._newest = version, wire.decode_params(packed)


class RemoteParamSink:
    """The learner's way to the parameter server: the newest version only, sent again to a re-created server."""

    def __init__(self, peer: Peer, clock: Clock, generation: int) -> None:
        self.lines = [Line(peer, clock)]
        self._line = self.lines[0]
        self._generation = generation
        self._newest: tuple[int, np.ndarray[Any, Any]] | None = None
        self._sent = (-1, -1)  # generation and version

    def publish(self, version: int, params: Params) -> None:
        """Send a version; while the server is down or slow only the newest one is kept."""
        self._newest = version, wire.encode_params(params)
        self.flush()

    def flush(self) -> None:
        """Send the newest version to a server that does not have it."""
        self._line.answers()
        if self._newest is None or self._line.waits() or len(self._line) >= MAX_PUBLISHING:
            return
        if (present := (self._line.generation, self._newest[0])) != self._sent:
            self._sent = present
            self._line.call("publish", *self._newest, self._generation)
