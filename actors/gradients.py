"""The gradient worker: an actor that learns from its own unrolls, and sends what it learned instead of them."""

from collections import deque
from collections.abc import Mapping
from itertools import count
from math import isfinite
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.config import MAX_UNTOLD, PlayConfig
from actors.rollout import Rollout
from starling.errors import RoleError
from starling.gradients import Gradient, GradientSink, Versions, clip_factor
from starling.metrics import Clock, Meter
from starling.params import Params
from starling.types import Columns, Progress, Unroll

MAX_BAD_GRADIENTS = 10  # in a row; one is noise, ten are a broken run


class Slope(Protocol):
    """What an unroll teaches."""

    @property
    def values(self) -> NDArray[np.float32]:
        """The gradient over all parameters, [size]."""

    @property
    def norm(self) -> float:
        """Its length, or something not finite."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Figures to show."""


class Differentiator(Protocol):
    """The half of a worker that needs torch."""

    def restart(self, seed: np.random.SeedSequence) -> None:
        """Draw other random numbers from now on."""

    def take(self, values: NDArray[np.float32], version: int, since: int | None) -> Params:
        """Take over all parameters, and return those that act."""

    def slope(self, unroll: Unroll) -> Slope:
        """Return the gradient of an unroll's losses."""


class GradientWorker:
    """Repeats: play an unroll, push the gradient of its losses, take over the parameters that come back.

    It acts and differentiates by the same parameters, those that came with the answer to its last gradient. What is
    not finite is pushed all the same, for the slices to refuse and count. Called from one thread, `stats` and `take`
    excepted.
    """

    def __init__(
        self,
        config: PlayConfig,
        clip_norm: float,
        rollout: Rollout,
        differentiator: Differentiator,
        sink: GradientSink,
        generation: int,
        clock: Clock,
    ) -> None:
        self.name = f"actor[{rollout.place.actor}]"
        self._config = config
        self._clip_norm = clip_norm
        self._rollout = rollout
        self._differentiator = differentiator
        self._sink = sink
        self._meter = Meter(clock, "waiting_values")
        self._ended: deque[Columns] = deque(maxlen=MAX_UNTOLD)
        self._bad_in_a_row = 0
        self.env_steps = 0
        self._begin(generation)

    def step(self) -> Progress:
        """Turn one unroll into a gradient, or report for whom it waits."""
        if self._owed and (wait := self._refresh()):
            return Progress(waits=f"{self.name} waits for {wait}")
        unroll = self._rollout.collect(self._config.unroll_length, min(self._versions), self._meter)
        self._meter.enter("computing")
        slope = self._differentiator.slope(unroll)
        self._meter.enter("pushing")
        self._push(slope, unroll.num_steps)
        work = {"env_steps": unroll.num_steps, "episodes": len(unroll.final_at), "gradients": 1}
        self._account(work, unroll, slope)
        self._refresh()  # at once: the answer to this gradient, not what others made of it until the next step
        return Progress(work=work)

    def restart(self, seed: np.random.SeedSequence, generation: int) -> None:
        """Begin anew in every copy, by parameters that are fetched first; what was played stays counted."""
        self._rollout.restart(seed, generation)
        self._differentiator.restart(seed)
        self._begin(generation)

    def take(self) -> list[Columns]:
        """Return the figures of the episodes that ended since the last call."""
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def stats(self) -> dict[str, Any]:
        """Return work, time shares, the version that acts, and the last losses."""
        return self._meter.snapshot()

    def close(self) -> None:
        """Let go of the environment."""
        self._rollout.close()

    def _begin(self, generation: int) -> None:
        self._generation = generation
        self._steps = count()
        self._versions: Versions = ()
        self._owed = True  # parameters: the first ones, or the answer to a gradient

    def _refresh(self) -> str:
        """Take over the parameters that have come, or say who must send some first."""
        self._meter.enter("waiting_values")
        if wait := self._sink.must_wait():
            return wait
        if fresh := self._sink.fetch(self._versions):
            self._meter.enter("loading")
            since = min(self._versions) if self._versions else None
            self._versions, values = fresh
            self._rollout.load(self._differentiator.take(values, min(self._versions), since))
            self._meter.gauge("version", min(self._versions))
        if not self._versions:
            return "the first parameters"
        self._owed = False
        self._meter.enter("idle")
        return ""

    def _push(self, slope: Slope, env_steps: int) -> None:
        gradient = Gradient(
            worker=self._rollout.place.actor,
            generation=self._generation,
            step=next(self._steps),
            versions=self._versions,
            values=slope.values * np.float32(clip_factor(slope.norm, self._clip_norm)),
            norm=slope.norm,
            env_steps=env_steps,
        )
        self._owed = True
        self._sink.push(gradient)

    def _account(self, work: Mapping[str, int], unroll: Unroll, slope: Slope) -> None:
        for name, done in work.items():
            self._meter.count(name, done)
        for name, figure in slope.metrics.items():
            self._meter.gauge(name, figure)
        self._meter.gauge("norm", slope.norm)
        self.env_steps += unroll.num_steps
        if unroll.final_at.size:
            self._ended.append(unroll.episodes)
        self._bad_in_a_row = 0 if isfinite(slope.norm) else self._bad_in_a_row + 1
        if self._bad_in_a_row >= MAX_BAD_GRADIENTS:
            raise RoleError(
                f"{self.name} got {self._bad_in_a_row} gradients in a row that are not finite; lower "
                "params.learning_rate or check the environment's rewards"
            )
