"""The kinds of Ray actor processes: a shard, the parameter server or a slice of it, and a role with a loop."""

import faulthandler
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import ray

from cluster import user_folder
from cluster.contents import News
from cluster.handles import (
    FETCH_RARELY_S,
    FETCH_SOON_S,
    Line,
    Peer,
    RemoteParams,
    RemoteParamSink,
    RemoteReplay,
    RemoteSink,
)
from cluster.remote_inference import RemoteInference
from cluster.remote_slices import RemoteSlices, RemoteValues
from learner.inlet import Inlet
from param_server.server import ParamServer
from param_server.slices import ParamSlice
from replay_server.durable import DurableShard
from starling import gradient_wire, wire
from starling.errors import StarlingError
from starling.metrics import Clock
from starling.state import Lasting, pack_state
from starling.types import InsertReply, Progress, Room

Buffer = np.ndarray[Any, np.dtype[np.uint8]]

INLINE_BYTES = 1 << 20  # parameters up to this size travel in the answer; larger ones as one object per version
STARTING = "it is starting"
IDLE_S = 0.001
MOST_IDLE_S = 0.004  # while nothing is on its way: a look at nothing costs a tenth of a millisecond
WAIT_S = 0.05
STOP_S = 2.5
STATE_POLL_S = 0.02
STATE_S = 2.0


class Beat(NamedTuple):
    """What a process says of itself when asked."""

    pid: int  # 0: it could not be made
    beats: int  # grows while the loop turns, also while it waits; a server's answers
    stats: dict[str, Any]
    waits: str = ""
    error: str = ""  # the role's own exception, with its traceback
    news: Sequence[Any] = ()  # what happened since the last beat, for the run folder
    lost: int = 0  # calls that were never answered


class ShardProcess:
    """A replay shard that answers one call after the other; what it is to serve is restored before the first."""

    def __init__(self, build: Callable[..., DurableShard]) -> None:
        self._news: list[News] = []
        self._refusal = ""
        self._answers = wire.Answers()
        self._beats = 0
        self._filled = -1  # the number of the newest recorded data
        try:
            self._shard = build(tell=self._news.append)
        except StarlingError as error:  # what it is to serve cannot be trusted: the supervisor is told
            self._refusal = str(error)

    def insert(self, unroll: Buffer) -> InsertReply:
        """Take one unroll; the answer acknowledges it."""
        return self._shard.insert(wire.decode_packed(unroll), unroll)

    def fill(self, unroll: Buffer, number: int) -> bool:
        """Take recorded data, whose numbers only grow, unless the disk is behind; what comes again is here already."""
        if number <= self._filled:
            return True
        if self._shard.must_wait():
            return False
        self._shard.fill(wire.decode_packed(unroll), unroll)
        self._filled = number
        return True

    def credit(self, actor: int) -> Room:
        """Return how many windows anybody may still insert, and what the shard waits for itself if there are none."""
        return Room(self._shard.credit(), self._shard.must_wait())

    def sample(self, request: Buffer) -> Buffer:
        """Answer one request of the learner."""
        return self._answers.pack(self._shard.sample, request)  # Ray copies it before it makes the next call

    def snapshot(self, name: str) -> None:
        """Begin to write down what the shard holds now."""
        self._shard.snapshot(name)

    def taken(self, name: str) -> Buffer | None:
        """Return what a checkpoint keeps of a snapshot, None while it is being written."""
        state = self._shard.taken(name)
        return None if state is None else pack_state(state)

    def drop(self, name: str) -> None:
        """Remove a snapshot of a checkpoint that will not be."""
        self._shard.drop(name)

    def beat(self) -> Beat:
        """Return what the role did, and once what it has restored."""
        if self._refusal:
            return Beat(os.getpid(), self._beats, {}, error=self._refusal)
        self._beats += 1
        news, self._news[:] = list(self._news), []
        return Beat(os.getpid(), self._beats, self._shard.stats(), news=news)


class ParamProcess:
    """The parameter server; large parameters become one shared object per version, which this process owns."""

    def __init__(self, build: Callable[[], ParamServer]) -> None:
        self._server = build()
        self._packed: tuple[int, Any] = (0, None)
        self._beats = 0

    def publish(self, version: int, params: Buffer, generation: int = 0) -> None:
        """Replace the parameters by a newer version."""
        self._server.publish(version, wire.decode_params(np.array(params)), generation)

    def fetch(self, newer_than: int) -> tuple[int, Any] | None:
        """Return a newer version, packed: by value, or as a reference in a list."""
        newest = self._server.fetch(newer_than)
        if newest is None:
            return None
        version, params = newest
        if self._packed[0] != version:
            packed = wire.encode_params(params)
            self._packed = version, packed if packed.nbytes <= INLINE_BYTES else [ray.put(packed)]
        return self._packed

    def beat(self) -> Beat:
        """Return what the role did."""
        self._beats += 1
        return Beat(os.getpid(), self._beats, self._server.stats())


class SliceProcess:
    """A slice of the parameters; each push is answered with its fresh values."""

    def __init__(self, build: Callable[[], ParamSlice]) -> None:
        self._slice = build()
        self._beats = 0

    def push(self, push: Buffer) -> Buffer:
        """Apply a gradient."""
        return gradient_wire.encode_pushed(self._slice.push(gradient_wire.decode_push(push)))

    def fetch(self, newer_than: int) -> tuple[int, np.ndarray[Any, Any]] | None:
        """Return newer values; Ray packs them before the next push changes them."""
        return self._slice.fetch(newer_than)

    def state(self) -> Buffer:
        """Return what a checkpoint keeps."""
        return pack_state(self._slice.state())

    def beat(self) -> Beat:
        """Return what the role did."""
        self._beats += 1
        return Beat(os.getpid(), self._beats, self._slice.stats())


@runtime_checkable
class Receiver(Protocol):
    """A role that is sent unrolls between its steps."""

    @property
    def inlet(self) -> Inlet | None:
        """Where they come in, in any thread; None: it is sent none."""


class Role(Protocol):
    """What a loop process repeats."""

    def step(self) -> Progress:
        """Do one unit of work."""

    def stats(self) -> dict[str, Any]:
        """Return what was done so far."""


@runtime_checkable
class Teller(Protocol):
    """A role with something to tell beside its counters."""

    def take(self) -> list[Any]:
        """Return what happened since the last call, for the run folder."""


Neighbour = RemoteSink | RemoteReplay | RemoteParams | RemoteParamSink | RemoteSlices | RemoteValues | RemoteInference

NEIGHBOURS: dict[str, Callable[[list[Peer], Clock, int], Neighbour]] = {
    "sink": lambda peers, clock, generation: RemoteSink([Line(peer, clock) for peer in peers], clock),
    "learner": lambda peers, clock, generation: RemoteSink(
        [Line(peers[0], clock)], clock, at_first=1, pack=wire.encode_whole
    ),
    "source": RemoteReplay,
    "params": lambda peers, clock, generation: RemoteParams(peers[0], clock),
    "newest": lambda peers, clock, generation: RemoteParams(peers[0], clock, FETCH_SOON_S),
    "judged": lambda peers, clock, generation: RemoteParams(peers[0], clock, FETCH_RARELY_S),
    "publisher": lambda peers, clock, generation: RemoteParamSink(peers[0], clock, generation),
    "gradients": lambda peers, clock, generation: RemoteSlices(peers, clock),
    "values": lambda peers, clock, generation: RemoteValues(peers, clock),
    "inference": lambda peers, clock, generation: RemoteInference(Line(peers[0], clock)),
}
"""How a role reaches neighbours, by the name of the constructor's argument. Unrolls and gradients say themselves who
sent them."""


class LoopProcess:
    """Repeats a role's `step` in a thread of its own; Ray's thread answers the supervisor, and actors, in between.

    `kept` is the state that its predecessor was last heard in, for a kind of role that can use it.
    """

    def __init__(
        self,
        name: str,
        build: Callable[..., Role],
        generation: int,
        peers: Mapping[str, list[Peer]],
        kept: Buffer | None = None,
    ) -> None:
        faulthandler.enable()
        user_folder.enter()
        self._neighbours = {
            argument: NEIGHBOURS[argument](list(them), time.monotonic, generation) for argument, them in peers.items()
        }
        self._roles = {argument: [peer.role for peer in them] for argument, them in peers.items()}
        self._beats = 0
        self._waits = "starting"
        self._idle_s = IDLE_S
        self._error = ""
        self._role: Role | None = None
        self._inlet: Inlet | None = None  # of the role, once that is there
        self._stopping = threading.Event()
        self._asked: SimpleQueue[Future[Buffer]] = SimpleQueue()
        given = {} if kept is None else {"kept": kept}
        make = partial(build, generation=generation, **given, **self._neighbours)
        self._thread = threading.Thread(target=self._run, args=(make,), name=name, daemon=True)
        self._thread.start()

    def beat(self) -> Beat:
        """Return what the role did and whether it still turns."""
        role = self._role
        stats = self._with_counts(role.stats()) if role is not None else {}
        news: list[Any] = role.take() if isinstance(role, Teller) else []
        return Beat(os.getpid(), self._beats, stats, self._waits, self._error, news, self._lost())

    def connect(self, peer: Peer) -> None:
        """Talk to this successor of a neighbour from now on."""
        for argument, roles in self._roles.items():
            for line, role in zip(self._neighbours[argument].lines, roles, strict=True):
                if role == peer.role:
                    line.connect(peer)

    def insert(self, unroll: Buffer) -> InsertReply:
        """Take an actor's unroll; one that comes before the role is there is refused, and its actor waits."""
        if self._inlet is None:
            return InsertReply(credit=0, accepted=False, waits=STARTING)
        return self._inlet.insert(wire.decode_whole(unroll))

    def credit(self, actor: int) -> Room:
        """Return how many more unrolls an actor may send."""
        return Room(0, STARTING) if self._inlet is None else self._inlet.credit(actor)

    def stop(self) -> Beat:
        """End the loop after the present step, and say what is left to say."""
        self._stopping.set()
        self._thread.join(timeout=STOP_S)
        return self.beat()

    def state(self) -> Buffer:
        """Return what a checkpoint keeps, as it is between two steps; of a loop that has ended, at its end."""
        answer: Future[Buffer] = Future()
        self._asked.put(answer)
        until = time.monotonic() + STATE_S
        while not answer.done() and time.monotonic() < until:
            if not self._thread.is_alive():
                self._answer()
            wait([answer], timeout=STATE_POLL_S)
        return answer.result(timeout=0)

    def _answer(self) -> None:
        while not self._asked.empty():
            answer, role = self._asked.get(), self._role
            try:
                assert role is not None, "a role that has not begun has no state"
                answer.set_result(pack_state(cast(Lasting, role).state()))
            except Exception as error:  # whoever asked is told; the loop goes on
                answer.set_exception(error)

    def _run(self, make: Callable[[], Role]) -> None:
        try:
            role = self._role = make()
            self._inlet = role.inlet if isinstance(role, Receiver) else None
            while not self._stopping.is_set():
                self._answer()
                progress = role.step()
                self._beats += 1
                self._waits = progress.waits
                if progress.waits:
                    self._idle()
                else:
                    self._idle_s = IDLE_S
        except Exception:  # an environment or a plug-in may raise anything: the supervisor is told, and decides
            self._error = traceback.format_exc()

    def _idle(self) -> None:
        """Let others work, until an answer comes or a little time is over."""
        for neighbour in self._neighbours.values():
            if isinstance(neighbour, RemoteParamSink):
                neighbour.flush()
        if self._inlet is not None:
            self._inlet.wait(WAIT_S)  # for an unroll: nothing that this role asks anybody can let it go on
            return
        for neighbour in self._neighbours.values():
            if isinstance(neighbour, RemoteInference) and neighbour.is_awaited():
                neighbour.wait(WAIT_S)  # at once: every step of a copy waits for such an answer
                return
        time.sleep(self._idle_s)
        flying = [reference for n in self._neighbours.values() for line in n.lines for reference in line.in_flight()]
        if flying:
            ray.wait(flying, timeout=WAIT_S)
            self._idle_s = IDLE_S
        else:
            self._idle_s = min(MOST_IDLE_S, 2 * self._idle_s)

    def _with_counts(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Add what the neighbours counted on the way."""
        counts = dict(stats["counts"])
        for neighbour in self._neighbours.values():
            if isinstance(neighbour, RemoteSink):
                counts |= neighbour.counts
        return {**stats, "counts": counts}

    def _lost(self) -> int:
        return sum(line.lost for neighbour in self._neighbours.values() for line in neighbour.lines)
