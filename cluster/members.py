"""The roles of a run as Ray processes: each incarnation has a generation, and a successor takes its place.

Ray itself restarts nothing: here is the one place for generations, back-off and budgets. A dead role is told by its
unanswered beat within milliseconds, a hung one by a loop that no longer turns.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from cluster.contents import News
from cluster.figures import INFERENCE, kind_of
from cluster.handles import Peer
from cluster.inference_process import InferenceProcess
from cluster.processes import Beat, Buffer, LoopProcess, ParamProcess, ShardProcess, SliceProcess
from starling.errors import RoleError, RunError
from starling.metrics import Clock

DIED = "died"
FULL = f"{DIED}: Ray ended it, since this machine's memory was nearly full"
START_LIMIT_S = 60.0  # from creation to the first turn of the loop: imports, environments, the first parameters
HANG_LIMIT_S = 10.0
STOP_LIMIT_S = 3.0  # for every loop's present step
MAX_RESTARTS, RESTART_WINDOW_S = 5, 600.0
BACK_OFF_S = (0.0, 1.0, 2.0, 4.0, 8.0)

START_ORDER = ("learner", INFERENCE, "actor", "replay_server", "param_server", "evaluator")

KEEP_EVERY_S = {"learner": 5.0, "param_server": 1.0}
"""How often a role's state is asked for, so that a successor has what is not published: optimizers, networks that no
actor runs, slices. What is lost of a slice that dies: the gradients that it applied in this time"""

INTRODUCED_LATE = "replay_server"
"""A kind whose neighbours hear of an incarnation when it first answers: until then it restores what it is to serve"""

Spawn = Callable[[int, Mapping[str, list[Peer]]], Any]
Happen = Callable[..., None]


@dataclass(slots=True)
class Member:
    """One role: how to make it, its present incarnation, and what all incarnations together did."""

    name: str
    spawn: Spawn
    peers: Mapping[str, Sequence[str]]  # the roles that it talks to, by the argument of its constructor
    generation: int = -1
    handle: Any = None
    pid: int = 0
    asked: Any = None
    asked_at: float = 0.0
    beat: Beat | None = None
    turned_at: float = 0.0
    retry_at: float = 0.0
    down_at: float | None = None
    restarts: deque[float] = field(default_factory=deque)
    before: dict[str, int] = field(default_factory=dict)  # counts of earlier incarnations
    keep_every_s: float = inf  # asks for the state that a successor begins with
    kept: Buffer | None = None  # that state
    keeping: Any = None  # the question for it that is under way
    asked_to_keep_at: float = -inf


class Members:
    """All roles of a run. `server` and `loop` declare them, `start` makes them, `watch` keeps them alive."""

    def __init__(
        self, clock: Clock, happen: Happen, start_limit_s: Callable[[str], float] = lambda role: START_LIMIT_S
    ) -> None:
        self._clock = clock
        self._happen = happen
        self._start_limit_s = start_limit_s
        self._members: dict[str, Member] = {}

    def server(self, kind: str, index: int, build: Callable[..., Any]) -> str:
        """Declare a role that only answers, and return its name."""
        process = {"replay_server": ShardProcess, "param_server": ParamProcess}[kind]

        def spawn(generation: int, peers: Mapping[str, list[Peer]]) -> Any:
            return _remote(process).remote(partial(build, generation=generation))

        return self._declare(f"{kind}[{index}]", spawn, {})

    def slice(self, index: int, build: Callable[..., Any]) -> str:
        """Declare a slice of the parameters, and return its name; a successor begins with the last state heard of."""
        name = f"param_server[{index}]"

        def spawn(generation: int, peers: Mapping[str, list[Peer]]) -> Any:
            kept = self._members[name].kept
            return _remote(SliceProcess).remote(partial(build, generation=generation, kept=kept))

        return self._declare(name, spawn, {}, KEEP_EVERY_S["param_server"])

    def loop(self, kind: str, index: int, build: Callable[..., Any], **peers: Sequence[str]) -> str:
        """Declare a role with a loop and the roles that it talks to, and return its name."""
        name = f"{kind}[{index}]"
        process = InferenceProcess if kind == INFERENCE else LoopProcess

        def spawn(generation: int, connected: Mapping[str, list[Peer]]) -> Any:
            kept = [self._members[name].kept] if kind in KEEP_EVERY_S else []
            return _remote(process).remote(name, build, generation, connected, *kept)

        return self._declare(name, spawn, peers, KEEP_EVERY_S.get(kind, inf))

    def start(self) -> None:
        """Make every role, first what the first step waits longest for; each is connected to those that follow."""
        for member in sorted(self._members.values(), key=lambda member: _turn_to_start(member.name)):
            self._spawn(member)

    def watch(self) -> dict[str, Beat]:
        """Ask every role that has answered, replace what died or hangs, and return the answers that came."""
        return {m.name: beat for m in self._members.values() if (beat := self._look_after(m)) is not None}

    def stop(self) -> dict[str, Beat]:
        """Let every loop end its present step, and return their last words."""
        loops = [m for m in self._members.values() if m.peers and m.beat is not None]
        asked = [m.asked for m in loops if m.asked is not None]
        last = [m.handle.stop.remote() for m in loops]
        if last:
            ray.wait(asked + last, num_returns=len(asked + last), timeout=STOP_LIMIT_S)
        return {m.name: beat for m, answer in zip(loops, last, strict=True) if (beat := self._last_words(m, answer))}

    def _last_words(self, member: Member, answer: Any) -> Beat | None:
        """Return a loop's last beat, with the news of one that was asked for before and not read yet."""
        before, beat = _heard(member.asked), _heard(answer)
        member.asked = None
        member.beat = beat or before or member.beat
        if beat is None or before is None:
            return beat or before
        return beat._replace(news=[*before.news, *beat.news])

    def counts(self, name: str) -> dict[str, int]:
        """Return what all incarnations of a role counted."""
        member = self._members[name]
        now = member.beat.stats.get("counts", {}) if member.beat else {}
        return {key: now.get(key, 0) + member.before.get(key, 0) for key in {*now, *member.before}}

    def is_up(self, name: str) -> bool:
        """Say whether a role has answered since it was made."""
        return self._members[name].beat is not None

    def kept(self, name: str) -> Buffer | None:
        """Return the state that a role was last heard in, if it is one that is kept for its successor."""
        return self._members[name].kept

    def names(self) -> list[str]:
        """Return the name of every role."""
        return list(self._members)

    def total(self, kind: str, counter: str) -> int:
        """Return what all incarnations of all roles of a kind counted."""
        return sum(self.counts(name).get(counter, 0) for name in self._members if name.startswith(f"{kind}["))

    def stats(self, name: str) -> dict[str, Any]:
        """Return a role's own figures, with its process and the counts of its predecessors."""
        member = self._members[name]
        stats = dict(member.beat.stats) if member.beat else {}
        process = {"pid": member.pid, "generation": member.generation, "up": member.handle is not None}
        return {
            **stats,
            "counts": self.counts(name),
            "process": process,
            "waits": member.beat.waits if member.beat else "",
            "calls_lost": member.beat.lost if member.beat else 0,
        }

    def handle(self, name: str) -> Any:
        """Return a role's present incarnation, for calls that nobody waits for."""
        return self._members[name].handle

    def ask(self, name: str, method: str, *args: Any, limit_s: float) -> Any:
        """Return a role's answer to one call, or None if it is down or does not answer in time."""
        member = self._members[name]
        if member.beat is None:
            return None
        try:
            return ray.get(getattr(member.handle, method).remote(*args), timeout=limit_s)
        except RayError:
            return None

    def _declare(self, name: str, spawn: Spawn, peers: Mapping[str, Sequence[str]], keep_every_s: float = inf) -> str:
        self._members[name] = Member(name, spawn, peers, keep_every_s=keep_every_s)
        return name

    def _spawn(self, member: Member) -> None:
        member.generation += 1
        peers = {argument: [self._peer(role) for role in roles] for argument, roles in member.peers.items()}
        member.handle = member.spawn(member.generation, peers)
        member.turned_at, member.asked_to_keep_at = self._clock(), -inf
        member.beat = member.asked = member.keeping = None
        member.pid = 0
        if kind_of(member.name) != INTRODUCED_LATE:
            self._introduce(member)

    def _introduce(self, member: Member) -> None:
        for other in self._members.values():
            if other.handle is not None and any(member.name in roles for roles in other.peers.values()):
                other.handle.connect.remote(self._peer(member.name))

    def _peer(self, role: str) -> Peer:
        member = self._members[role]
        known = kind_of(role) != INTRODUCED_LATE or member.beat is not None
        return Peer(role, member.handle if known else None, member.generation)

    def _look_after(self, member: Member) -> Beat | None:
        now = self._clock()
        if member.handle is None:
            if now >= member.retry_at:
                self._spawn(member)
                self._happen("recreated", role=member.name, generation=member.generation)
            return None
        if member.asked is None:
            member.asked, member.asked_at = member.handle.beat.remote(), now
            return None
        if not _ready(member.asked):
            if now - member.asked_at > (HANG_LIMIT_S if member.beat else self._start_limit_s(member.name)):
                self._replace(member, f"did not answer for {now - member.asked_at:.0f} s")
            return None
        beat = _answer(member.asked)
        member.asked = None
        if isinstance(beat, str):
            self._replace(member, beat, gone=True)
            return None
        return self._hear(member, beat, now)

    def _keep(self, member: Member, now: float) -> None:
        """Ask for a state now and then that a successor can go on from; nobody waits for the answer."""
        if member.keeping is None:
            if now - member.asked_to_keep_at >= member.keep_every_s:
                member.keeping, member.asked_to_keep_at = member.handle.state.remote(), now
        elif _ready(member.keeping):
            try:
                member.kept = ray.get(member.keeping)
            except RayError as error:  # it died, or its step was too long
                self._happen("not_kept", role=member.name, why=str(error).strip().splitlines()[-1])
            member.keeping = None

    def _hear(self, member: Member, beat: Beat, now: float) -> Beat | None:
        refuses = beat.error and beat.pid and kind_of(member.name) == INTRODUCED_LATE
        if refuses and member.generation == 0:
            raise RunError(beat.error)  # a successor would begin with something else than the run goes on with
        if beat.error:
            self._happen("role_error", role=member.name, error=beat.error)
            member.beat = beat
            self._replace(member, beat.error.strip().splitlines()[-1])
            return None
        first = member.beat is None
        if member.beat is None or _turns(beat) != _turns(member.beat):
            if member.down_at is not None and beat.beats > 0:
                recovered = News("recovered", {"role": member.name, "seconds": round(now - member.down_at, 2)})
                beat = beat._replace(news=[*beat.news, recovered])  # after all that it told of its coming back
                member.down_at = None
            member.turned_at = now
        member.beat, member.pid = beat, beat.pid
        if first and kind_of(member.name) == INTRODUCED_LATE:
            self._introduce(member)
        if beat.beats and member.keep_every_s < inf:
            self._keep(member, now)
        limit = HANG_LIMIT_S if beat.beats else START_LIMIT_S
        if now - member.turned_at > limit:
            self._replace(member, f"made no progress for {now - member.turned_at:.0f} s ({beat.waits or 'working'})")
            return None
        return beat

    def _replace(self, member: Member, why: str, gone: bool = False) -> None:
        """End this incarnation for good, and plan the next one within the budget."""
        now = self._clock()
        member.before = self.counts(member.name)
        self._happen("lost", role=member.name, generation=member.generation, why=why, held=_held(member))
        self._kill(member, gone)
        member.restarts.append(now)
        while now - member.restarts[0] > RESTART_WINDOW_S:
            member.restarts.popleft()
        if len(member.restarts) > MAX_RESTARTS:
            raise RoleError(
                f"{member.name} failed {len(member.restarts)} times in {RESTART_WINDOW_S / 60:.0f} minutes "
                f"(at most {MAX_RESTARTS}), the last time: {why}; see events.jsonl in the run folder"
            )
        member.handle, member.beat, member.pid = None, None, 0
        member.down_at = now
        member.retry_at = now + BACK_OFF_S[min(len(member.restarts) - 1, len(BACK_OFF_S) - 1)]

    def _kill(self, member: Member, gone: bool) -> None:
        if member.pid and not gone:  # a dead process's number may be another's by now
            with suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)  # ray.kill asks politely first, and a stopped process is deaf
        ray.kill(member.handle, no_restart=True)


def _turn_to_start(name: str) -> int:
    kind = kind_of(name)
    return START_ORDER.index(kind) if kind in START_ORDER else len(START_ORDER)


def _held(member: Member) -> dict[str, float]:
    """Return what an incarnation held when it was last heard: a shard's windows, a learner's updates."""
    stats = member.beat.stats if member.beat else {}
    figures = {**stats.get("counts", {}), **stats.get("gauges", {})}
    return {name: figures[name] for name in ("windows", "rows", "updates", "env_steps", "version") if name in figures}


def _remote(process: type) -> Any:
    return ray.remote(process).options(num_cpus=0.1, max_restarts=0, max_task_retries=0)


def _turns(beat: Beat) -> int:
    """Return what grows while a role gets on: its steps, and what it does within a long one."""
    return beat.beats + int(beat.stats.get("turns", 0))


def _ready(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def _heard(asked: Any) -> Beat | None:
    """Return what a role has answered by now, if it was asked and lives."""
    said = _answer(asked) if asked is not None and _ready(asked) else None
    return said if isinstance(said, Beat) else None


def _answer(reference: Any) -> Beat | str:
    """Return what a role answered, or how it ended; of one that could not be made, why."""
    try:
        beat: Beat = ray.get(reference)
    except RayActorError as error:
        return Beat(0, 0, {}, error=str(error)) if error.actor_init_failed else DIED
    except OutOfMemoryError:
        return FULL
    return beat
