"""Ray handles as the Protocols that roles know: bounded, in order, and every wait names the role waited for."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayActorError

from starling import wire
from starling.metrics import Clock
from starling.params import Params
from starling.types import InsertReply, SampleReply, SampleRequest, Unroll

ANSWER_LIMIT_S = 30.0  # a call without an answer for so long is given up and counted
CREDIT_EVERY_S = 0.01  # between questions for insert credit
FETCH_EVERY_S = 0.02  # between questions for newer parameters
MAX_PUBLISHING = 2  # versions on their way to the parameter server


class Peer(NamedTuple):
    """A role as its neighbours reach it; a re-created role is a new handle, and one that is not there yet is None."""

    role: str
    handle: Any
    generation: int


class Line:
    """Calls in flight to one role, answered in the order in which they were made.

    When the role dies, its unanswered calls are lost and counted, and nothing is sent until the supervisor connects
    its successor. A call that outlives the limit is given up in the same way. Used by one thread, `connect` excepted.
    """

    def __init__(self, peer: Peer, clock: Clock, limit_s: float = ANSWER_LIMIT_S) -> None:
        self._peer = peer
        self._next: Peer | None = None
        self._clock = clock
        self._limit_s = limit_s
        self._flying: deque[tuple[Any, float]] = deque()
        self._down_since = None if peer.handle is not None else clock()
        self.lost = 0

    def connect(self, peer: Peer) -> None:
        """Talk to this successor from the next call on; may be called from another thread."""
        self._next = peer

    @property
    def generation(self) -> int:
        """Return which incarnation of the role is talked to."""
        return self._peer.generation

    def call(self, method: str, *args: Any) -> None:
        """Send a call; its answer comes through `answers`."""
        assert self.waits() == "", "a role that is down is not called"
        self._flying.append((getattr(self._peer.handle, method).remote(*args), self._clock()))

    def answers(self) -> list[Any]:
        """Return the answers that have come, without waiting."""
        self._reconnect()
        come: list[Any] = []
        if not self._flying:
            return come
        flying = self.in_flight()
        ready = set(ray.wait(flying, num_returns=len(flying), timeout=0)[0])
        while self._flying and self._flying[0][0] in ready:
            try:
                come.append(ray.get(self._flying[0][0]))
            except RayActorError:
                self._give_up()
                return come
            self._flying.popleft()
        if self._flying and self._clock() - self._flying[0][1] > self._limit_s:
            self._give_up()
        return come

    def waits(self) -> str:
        """Say who must come back before anything can be sent; empty when it can."""
        self._reconnect()
        if self._down_since is None:
            return ""
        return f"{self._peer.role}, down for {self._clock() - self._down_since:.0f} s"

    def in_flight(self) -> list[Any]:
        """Return what `ray.wait` can wait for."""
        return [reference for reference, _ in self._flying]

    def __len__(self) -> int:
        return len(self._flying)

    def _give_up(self) -> None:
        self.lost += len(self._flying)
        self._flying.clear()
        self._down_since = self._clock()

    def _reconnect(self) -> None:
        if self._next is not None:
            if self._down_since is None:
                self._give_up()
            self._peer, self._next, self._down_since = self._next, None, None


class RemoteSink:
    """An actor's way to its shard: few unrolls in flight, each acknowledged, and none without credit."""

    def __init__(self, peer: Peer, clock: Clock, in_flight: int = 2) -> None:
        self.lines = [Line(peer, clock)]
        self._line = self.lines[0]
        self._role = peer.role
        self._clock = clock
        self._in_flight = in_flight
        self._credit = 1
        self._asked = -CREDIT_EVERY_S

    def insert(self, unroll: Unroll) -> None:
        """Send one unroll."""
        self._line.call("insert", wire.encode_unroll(unroll))

    def must_wait(self) -> str:
        """Wait for acknowledgements when too many are missing, and for credit when the learner is behind."""
        for answer in self._line.answers():
            self._credit = answer.credit if isinstance(answer, InsertReply) else answer
        if down := self._line.waits():
            self._credit = 1  # a successor says itself how much it takes
            return down
        if len(self._line) >= self._in_flight:
            return f"{self._role} to acknowledge"
        if self._credit > 0:
            return ""
        if not len(self._line) and self._clock() - self._asked >= CREDIT_EVERY_S:
            self._asked = self._clock()
            self._line.call("credit")
        return f"insert credit from {self._role}"


class RemoteReplay:
    """The learner's way to all shards.

    A shard that is down answers with nothing, so that learning goes on with the rest. What its predecessor took
    counts on, so that the account of samples per insert never goes back.
    """

    def __init__(self, peers: Sequence[Peer], clock: Clock) -> None:
        self.lines = [Line(peer, clock) for peer in peers]
        self._owed: list[deque[int]] = [deque() for _ in peers]  # batches in each request without an answer
        self._lost = [0] * len(peers)
        self._before = [0] * len(peers)  # windows inserted into predecessors
        self._inserted = [0] * len(peers)

    @property
    def num_shards(self) -> int:
        """How many shards there are, those that are down included."""
        return len(self.lines)

    def request(self, shard: int, request: SampleRequest) -> None:
        """Ask one shard; one that is down will answer with nothing."""
        self._owed[shard].append(len(request.counts))
        if not self.lines[shard].waits():
            limit = request.insert_limit - self._before[shard]
            self.lines[shard].call("sample", wire.encode_request(replace(request, insert_limit=limit)))

    def replies(self) -> list[tuple[int, SampleReply]]:
        """Return the answers that have come, with empty ones in place of those that never will."""
        return [(shard, reply) for shard in range(len(self.lines)) for reply in self._replies(shard)]

    def _replies(self, shard: int) -> list[SampleReply]:
        line, owed = self.lines[shard], self._owed[shard]
        come = []
        for answer in line.answers():
            reply = wire.decode_reply(answer)
            self._inserted[shard] = reply.inserted
            come.append(replace(reply, inserted=self._before[shard] + reply.inserted))
            owed.popleft()
        if line.lost > self._lost[shard]:
            self._lost[shard] = line.lost
            self._before[shard] += self._inserted[shard]
            self._inserted[shard] = 0
        return come + [self._nothing(shard, owed.popleft()) for _ in range(len(owed) - len(line))]

    def _nothing(self, shard: int, batches: int) -> SampleReply:
        return SampleReply(
            counts=[0] * batches,
            columns={},
            keys=np.empty(0, np.int64),
            probabilities=np.empty(0),
            mass=0.0,
            size=0,
            inserted=self._before[shard] + self._inserted[shard],
        )


class RemoteParams:
    """An actor's way to the parameter server: always one question in flight, so asking costs no waiting."""

    def __init__(self, peer: Peer, clock: Clock) -> None:
        self.lines = [Line(peer, clock)]
        self._line = self.lines[0]
        self._clock = clock
        self._asked = -FETCH_EVERY_S
        self._newest: tuple[int, Params] | None = None

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        """Return the newest version that has arrived, if it is newer."""
        for answer in self._line.answers():
            if answer is not None:
                version, packed = answer
                if isinstance(packed, list):
                    packed = ray.get(packed[0], timeout=ANSWER_LIMIT_S)
                self._newest = version, wire.decode_params(packed)
        if not len(self._line) and not self._line.waits() and self._clock() - self._asked >= FETCH_EVERY_S:
            self._asked = self._clock()
            self._line.call("fetch", max(newer_than, self._newest[0] if self._newest else 0))
        if self._newest is not None and self._newest[0] > newer_than:
            return self._newest
        return None


class RemoteParamSink:
    """The learner's way to the parameter server: the newest version only, sent again to a re-created server."""

    def __init__(self, peer: Peer, clock: Clock) -> None:
        self.lines = [Line(peer, clock)]
        self._line = self.lines[0]
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
            self._line.call("publish", *self._newest)
