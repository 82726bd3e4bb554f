"""Worlds for the replay tests: environment copies that count, and a reference that keeps everything."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_server.config import ReplayConfig
from replay_server.shard import ReplayShard
from starling.metrics import no_clock
from starling.spec import ArraySpec, Spec
from starling.types import Columns, InsertReply, SampleReply, SampleRequest, Unroll
from starling.windows import Window

SPEC = Spec(env="Counting", obs=ArraySpec((2,), "float32"), action=ArraySpec((), "int64"), num_actions=2)
EXTRA = {"log_mu": ArraySpec((), "float32")}
STATES = {"h": ArraySpec((3,), "float32")}


@dataclass
class Step:
    """One real step; `position` is where it lies in the order of storage."""

    obs: tuple[int, int]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    version: int
    log_mu: float
    age: int
    state: int = 0  # what a recurrent network had in mind
    position: int = -1
    final_obs: tuple[int, int] | None = None


@dataclass
class Ledger:
    """What a shard of unlimited size would hold of several worlds."""

    rows: int = 0
    states: list[Step] = field(default_factory=list)  # steps whose recurrent state was sent, in order


@dataclass
class Held:
    """A window that must be there."""

    steps: list[Step]
    last: tuple[int, int]  # the observation after them
    before: list[tuple[int, int]]  # observations before them that belong to the first stack

    def stack(self, index: int, stack: int) -> list[tuple[int, int]]:
        """Return by definition what a network sees at a step, or after the last one."""
        seen = [*self.before, *(step.obs for step in self.steps), self.last]
        newest = len(self.before) + index
        return [seen[max(0, frame)] for frame in range(newest - stack + 1, newest + 1)]


@dataclass
class CountingWorld:
    """Copies whose observations are (copy, a serial number); remembers all that its unrolls said."""

    rng: np.random.Generator
    copies: int = 2
    end_probability: float = 0.3
    next_step: bool = True  # the row after an episode's end is an autoreset row
    actor: int = 0
    generation: int = 0
    sequence: int = 0
    ledger: Ledger = field(default_factory=Ledger)  # shared by worlds that write to one shard
    period: int = 0  # a recurrent state is sent with every such step of an episode; 0: never
    states_sent: float = 1.0  # of those
    streams: list[list[list[Step]]] = field(default_factory=list)  # [copy][uninterrupted part][step]

    def __post_init__(self) -> None:
        self._serial = 0
        self._age = [0] * self.copies
        self._resetting = [False] * self.copies
        self._obs = [self._new_obs(copy) for copy in range(self.copies)]
        self.streams = [[[]] for _ in range(self.copies)]

    def unroll(self, length: int, lost: bool = False) -> Unroll:
        """Play on; a `lost` unroll never reaches the shard, so that the streams are cut there."""
        if lost:
            for stream in self.streams:
                stream.append([])
        rows = [[self._play(copy) for copy in range(self.copies)] for _ in range(length)]
        steps = [step for row in rows for step in row if step is not None]
        finals = [step for step in steps if step.final_obs is not None]
        starting = [step for step in steps if self.period and step.age % self.period == 0]
        starting = [step for step in starting if self.rng.random() < self.states_sent]
        if not lost:
            for position, step in enumerate(steps):
                step.position = self.ledger.rows + position
                self.streams[step.obs[0] % 100][-1].append(step)
            self.ledger.rows += len(steps) + len(finals)
            self.ledger.states += starting
        self.sequence += 1
        flat = [step for row in rows for step in row]
        return Unroll(
            actor=self.actor,
            generation=self.generation,
            sequence=self.sequence - 1,
            columns=self._columns(rows),
            final_at=np.flatnonzero([step is not None and step.final_obs is not None for step in flat]),
            final_obs=np.array([step.final_obs for step in finals], np.float32).reshape(-1, 2),
            start_at=np.flatnonzero([any(step is one for one in starting) for step in flat]),
            starts={"h": np.array([[step.state] * 3 for step in starting], np.float32).reshape(-1, 3)},
        )

    def restart(self) -> None:
        """Die, and come back as the next generation."""
        self.generation, self.sequence = self.generation + 1, 0
        self._resetting = [False] * self.copies
        self._age = [0] * self.copies
        for copy, stream in enumerate(self.streams):
            self._obs[copy] = self._new_obs(copy)
            stream.append([])

    def windows(self, window: Window, capacity: int, states: int = 0) -> dict[tuple[int, int], Held]:
        """Return by first observation every window that is whole and alive, if so many recurrent states are kept."""
        oldest = self.ledger.rows - capacity
        found = {}
        for part in (part for stream in self.streams for part in stream):
            for start, first in enumerate(part):
                steps = _until_the_end(part[start : start + window.length])
                ended = steps[-1].final_obs
                after = part[start + window.length].obs if start + window.length < len(part) else None
                last = ended or after
                behind = min(first.age, window.stack - 1)
                before = part[max(0, start - behind) : start]
                there = len(before) == behind and all(step.position >= oldest for step in [*before, first])
                teaches = first.age == 0 or len(steps) > window.burn_in
                stateful = not self.period or any(first is step for step in self.ledger.states[-states:])
                if last and there and teaches and stateful and first.age % window.period == 0:
                    found[first.obs] = Held(steps, last, [step.obs for step in before])
        return found

    def _play(self, copy: int) -> Step | None:
        if self._resetting[copy]:
            self._resetting[copy] = False
            self._obs[copy], self._age[copy] = self._new_obs(copy), 0
            return None
        ended = self.rng.random() < self.end_probability
        terminated = bool(ended and self.rng.random() < 0.5)
        step = Step(
            obs=self._obs[copy],
            action=int(self.rng.integers(2)),
            reward=float(self.rng.integers(100)),
            terminated=terminated,
            truncated=bool(ended and not terminated),
            version=self.sequence + 1,
            log_mu=float(self.rng.integers(100)),
            age=self._age[copy],
            state=int(self.rng.integers(1000)),
        )
        self._obs[copy] = self._new_obs(copy)
        self._age[copy] += 1
        if ended:
            step.final_obs = self._obs[copy]
            self._resetting[copy] = self.next_step
            if not self.next_step:
                self._obs[copy], self._age[copy] = self._new_obs(copy), 0
        return step

    def _new_obs(self, copy: int) -> tuple[int, int]:
        self._serial += 1
        return 100 * self.actor + copy, self._serial

    def _columns(self, rows: list[list[Step | None]]) -> Columns:
        nothing = Step((-1, -1), 9, 99.0, False, False, -9, 99.0, 7)  # an autoreset row says nothing of meaning

        def column(name: str, dtype: Any) -> NDArray[Any]:
            return np.array([[getattr(step or nothing, name) for step in row] for row in rows], dtype)

        return {
            "obs": column("obs", np.float32),
            "action": column("action", np.int64),
            "reward": column("reward", np.float32),
            "terminated": column("terminated", bool),
            "truncated": column("truncated", bool),
            "version": column("version", np.int64),
            "log_mu": column("log_mu", np.float32),
            "age": column("age", np.int64),
            "acted": np.array([[step is not None for step in row] for row in rows]),
        }


def _until_the_end(steps: list[Step]) -> list[Step]:
    ends = [index for index, step in enumerate(steps) if step.final_obs is not None]
    return steps[: ends[0] + 1] if ends else steps


def make_shard(
    window: Window | None = None, seed: int = 0, origin: int = 0, recurrent: bool = False, **config: Any
) -> ReplayShard:
    """Return an empty shard of counting worlds."""
    rng, starts = np.random.default_rng(seed), STATES if recurrent else {}
    return ReplayShard(ReplayConfig(**config), SPEC, window or Window(), EXTRA, rng, no_clock, origin, starts)


def bandit_unroll(priorities: Sequence[float] | None, sequence: int = 0, count: int = 0, **fields: Any) -> Unroll:
    """Return episodes of one step each, all of one copy: every step is a window; observations count from 1."""
    count = len(priorities) if priorities is not None else count
    obs = np.stack([np.full(count, fields.get("actor", 0)), np.arange(1, count + 1)], axis=1)
    return Unroll(
        **{"actor": 0, "generation": 0, **fields},
        sequence=sequence,
        columns={
            "obs": obs[:, None].astype(np.float32),
            "action": np.zeros((count, 1), np.int64),
            "reward": np.arange(count, dtype=np.float32)[:, None],
            "terminated": np.ones((count, 1), bool),
            "truncated": np.zeros((count, 1), bool),
            "version": np.zeros((count, 1), np.int64),
            "log_mu": np.zeros((count, 1), np.float32),
            "age": np.zeros((count, 1), np.int64),
            "acted": np.ones((count, 1), bool),
        },
        final_at=np.arange(count),
        final_obs=np.zeros((count, 2), np.float32),
        priorities=None if priorities is None else np.array(priorities, np.float32)[:, None],
    )


def bandit_shard(priorities: Sequence[float], actor: int = 0, seed: int = 0, **config: Any) -> ReplayShard:
    """Return a shard with one window for each priority, drawn exactly in proportion."""
    settings = {"alpha": 1.0, "eps": 1e-300, "min_windows": 1, **config}
    shard = make_shard(seed=seed, **settings)
    shard.insert(bandit_unroll(priorities, actor=actor))
    return shard


def draw(
    shard: ReplayShard, *counts: int, keys: Sequence[int] = (), priorities: Sequence[float] = (), **fields: Any
) -> SampleReply:
    """Ask a shard for windows."""
    request = SampleRequest(
        counts=counts,
        keys=np.array(keys, np.int64),
        priorities=np.array(priorities, np.float64),
        **{"insert_limit": 10**9, **fields},
    )
    return shard.sample(request)


def insert_all(shard: ReplayShard, unrolls: Sequence[Unroll]) -> list[InsertReply]:
    """Insert unrolls in turn."""
    return [shard.insert(unroll) for unroll in unrolls]
