"""The actor: plays copies of an environment and sends what happened."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actors.config import MAX_UNTOLD, PlayConfig
from actors.rollout import Rollout
from starling.errors import check
from starling.metrics import Clock, Meter
from starling.types import Columns, ParamSource, Place, Progress, ReplaySink, Unroll


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorConfig(PlayConfig):
    """How many actors there are and how each of them works."""

    unroll_length: int = 16
    """steps of every copy that are sent together"""
    fetch_every: int = 0
    """env steps between looks for newer parameters; 0: before every unroll"""

    def __post_init__(self) -> None:
        PlayConfig.__post_init__(self)  # slots: super() would mean the class before they were made
        check(self.fetch_every >= 0, f"actor.fetch_every must be >= 0, got {self.fetch_every}")


class Player(Protocol):
    """How an actor gets its unrolls: by networks of its own, or by an inference role's."""

    @property
    def place(self) -> Place:
        """Which actor it is."""

    @property
    def under_way(self) -> bool:
        """Whether an unroll is begun and not finished."""

    def play(self, length: int, meter: Meter) -> Unroll | str:
        """Return the next unroll, or for what it waits."""

    def restart(self, seed: np.random.SeedSequence, generation: int) -> None:
        """Begin anew in every copy, by parameters newer than none."""

    def close(self) -> None:
        """Let go of the environment."""


class OwnNetworks:
    """A Player with networks of its own: fetches newer parameters before an unroll, and plays it in one go.

    In lockstep it plays once by each version: it waits for a newer one than those that acted in its last unroll.
    """

    def __init__(self, rollout: Rollout, params: ParamSource, fetch_every: int = 0, lockstep: bool = False) -> None:
        self.place = rollout.place
        self.under_way = False
        self._rollout = rollout
        self._params = params
        self._fetch_every = fetch_every
        self._lockstep = lockstep
        self._version = self._played = 0
        self._since_fetch = fetch_every  # env steps; due at once

    def play(self, length: int, meter: Meter) -> Unroll | str:
        """Return the next unroll, or which parameters must come before it."""
        if self._since_fetch >= self._fetch_every:
            self._refresh(meter)
        if wait := self._must_wait():
            meter.enter("waiting_params")
            return wait
        unroll = self._rollout.collect(length, self._version, meter)
        self._played = self._version
        self._since_fetch += unroll.num_steps
        return unroll

    def restart(self, seed: np.random.SeedSequence, generation: int) -> None:
        """Begin anew in every copy, by parameters that are fetched first."""
        self._rollout.restart(seed, generation)
        self._version = self._played = 0
        self._since_fetch = self._fetch_every

    def close(self) -> None:
        """Let go of the environment."""
        self._rollout.close()

    def _must_wait(self) -> str:
        if self._version == 0:
            return "the first parameters"
        if self._lockstep and self._version <= self._played:
            return f"version {self._played + 1} of the parameters"
        return ""

    def _refresh(self, meter: Meter) -> None:
        meter.enter("fetching")
        if fresh := self._params.fetch(newer_than=self._version):
            self._version, params = fresh
            self._rollout.load(params)
            meter.gauge("version", self._version)
        if self._version:
            self._since_fetch = 0


class Actor:
    """Repeats: play `unroll_length` steps of every copy, send them.

    It begins nothing that its sink has no room for, so a slow shard slows its actors down and memory stays bounded.
    Called from one thread, `stats` and `take` excepted.
    """

    def __init__(self, config: PlayConfig, player: Player, sink: ReplaySink, clock: Clock) -> None:
        self.name = f"actor[{player.place.actor}]"
        self._length = config.unroll_length
        self._player = player
        self._sink = sink
        self._meter = Meter(clock, "waiting_params")
        self._ended: deque[Columns] = deque(maxlen=MAX_UNTOLD)
        self.env_steps = 0

    def step(self) -> Progress:
        """Play and send one unroll, or report for whom it waits."""
        if not self._player.under_way and (wait := self._sink.must_wait()):
            self._meter.enter("waiting_credit")
            return Progress(waits=f"{self.name} waits for {wait}")
        unroll = self._player.play(self._length, self._meter)
        if isinstance(unroll, str):
            return Progress(waits=f"{self.name} waits for {unroll}")
        self._meter.enter("inserting")
        self._sink.insert(unroll)
        work = {"env_steps": unroll.num_steps, "episodes": len(unroll.final_at), "unrolls": 1}
        for name, done in work.items():
            self._meter.count(name, done)
        self.env_steps += unroll.num_steps
        if unroll.final_at.size:
            self._ended.append(unroll.episodes)
        self._meter.enter("idle")
        return Progress(work=work)

    def restart(self, seed: np.random.SeedSequence, generation: int) -> None:
        """Begin anew in every copy, by parameters that are fetched first; what was played stays counted."""
        self._player.restart(seed, generation)

    def take(self) -> list[Columns]:
        """Return the figures of the episodes that ended since the last call."""
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def stats(self) -> dict[str, Any]:
        """Return work, time shares and the version that acts."""
        return self._meter.snapshot()

    def close(self) -> None:
        """Let go of the environment."""
        self._player.close()
