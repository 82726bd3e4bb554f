"""The actor: plays copies of an environment by the newest parameters, and sends what happened."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.config import MAX_UNTOLD, PlayConfig
from actors.rollout import Rollout
from starling.errors import check
from starling.metrics import Clock, Meter
from starling.types import Columns, ParamSource, Progress, ReplaySink


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


class Actor:
    """Repeats: refresh parameters, play `unroll_length` steps of every copy, send them.

    It plays nothing that its sink has no room for, so a slow shard slows its actors down and memory stays bounded.
    In lockstep it plays once by each version, and waits for a newer one than those that acted in its last unroll.
    Called from one thread, `stats` and `take` excepted.
    """

    def __init__(
        self,
        config: PlayConfig,
        rollout: Rollout,
        sink: ReplaySink,
        params: ParamSource,
        clock: Clock,
        fetch_every: int = 0,
        lockstep: bool = False,
    ) -> None:
        self.name = f"actor[{rollout.place.actor}]"
        self._config = config
        self._rollout = rollout
        self._sink = sink
        self._params = params
        self._meter = Meter(clock, "waiting_params")
        self._fetch_every = fetch_every
        self._lockstep = lockstep
        self._version = 0
        self._played = 0  # the oldest version that acted in the last unroll
        self._since_fetch = fetch_every  # env steps; due at once
        self._ended: deque[Columns] = deque(maxlen=MAX_UNTOLD)
        self.env_steps = 0

    def step(self) -> Progress:
        """Play and send one unroll, or report for whom it waits."""
        if wait := self._sink.must_wait():
            self._meter.enter("waiting_credit")
            return Progress(waits=f"{self.name} waits for {wait}")
        if self._since_fetch >= self._fetch_every:
            self._refresh()
        if wait := self._must_wait_for_params():
            self._meter.enter("waiting_params")
            return Progress(waits=f"{self.name} waits for {wait}")
        unroll = self._rollout.collect(self._config.unroll_length, self._version, self._meter)
        self._meter.enter("inserting")
        self._played = int(unroll.columns["version"].min())
        self._sink.insert(unroll)
        work = {"env_steps": unroll.num_steps, "episodes": len(unroll.final_at), "unrolls": 1}
        for name, done in work.items():
            self._meter.count(name, done)
        self.env_steps += unroll.num_steps
        self._since_fetch += unroll.num_steps
        if unroll.final_at.size:
            self._ended.append(unroll.episodes)
        self._meter.enter("idle")
        return Progress(work=work)

    def restart(self, seed: np.random.SeedSequence, generation: int) -> None:
        """Begin anew in every copy, by parameters that are fetched first; what was played stays counted."""
        self._rollout.restart(seed, generation)
        self._version = self._played = 0
        self._since_fetch = self._fetch_every

    def take(self) -> list[Columns]:
        """Return the figures of the episodes that ended since the last call."""
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def stats(self) -> dict[str, Any]:
        """Return work, time shares and the version that acts."""
        return self._meter.snapshot()

    def close(self) -> None:
        """Let go of the environment."""
        self._rollout.close()

    def _must_wait_for_params(self) -> str:
        """Say which parameters must come before it plays on; empty: none."""
        if self._version == 0:
            return "the first parameters"
        if self._lockstep and self._version <= self._played:
            return f"version {self._played + 1} of the parameters"
        return ""

    def _refresh(self) -> None:
        self._meter.enter("fetching")
        if fresh := self._params.fetch(newer_than=self._version):
            self._version, params = fresh
            self._rollout.load(params)
            self._meter.gauge("version", self._version)
        if self._version:
            self._since_fetch = 0
