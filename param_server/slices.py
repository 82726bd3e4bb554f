"""One slice of the parameters, which is its own optimizer: gradients come in, fresh values go back."""

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from param_server.config import SliceConfig
from param_server.optimizers import Optimizer
from param_server.writers import Writers
from starling.errors import check
from starling.gradients import Gradient, Push, Pushed, Refusal
from starling.metrics import Clock, Meter
from starling.state import State, require_same
from starling.types import Columns


def cut(size: int, slices: int) -> list[slice]:
    """Return consecutive parts of a vector whose sizes differ by one at most."""
    check(1 <= slices <= size, f"params.slices must be between 1 and {size} (parameters), got {slices}")
    ends = [size * part // slices for part in range(slices + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def parts(gradient: Gradient, cuts: Sequence[slice]) -> list[Push]:
    """Return what each slice gets of a gradient, as views."""
    return [
        Push(
            worker=gradient.worker,
            generation=gradient.generation,
            step=gradient.step,
            version=version,
            gradient=gradient.values[span],
            norm=gradient.norm,
            env_steps=gradient.env_steps,
        )
        for version, span in zip(gradient.versions, cuts, strict=True)
    ]


class ParamSlice:
    """Applies each gradient once, as it comes, and answers with the values that are the newest then. Never waits.

    The version counts applied gradients and only grows. What is repeated, was sent by a worker that was replaced, is
    not finite or too stale moves nothing and is counted; its sender gets fresh values all the same. The clock of the
    learning rate is the env steps of every gradient heard for the first time, those refused as stale or not finite
    included: slices that have heard the same gradients are at the same rate, whatever each of them applied.

    Values are read-only views, which the next gradient changes: who keeps them copies. Called from one thread.
    """

    def __init__(self, config: SliceConfig, values: NDArray[np.float32], clock: Clock) -> None:
        self._config = config
        self._values = np.array(values, np.float32)
        self._fresh = self._values.view()
        self._fresh.flags.writeable = False
        self._optimizer = Optimizer(config, self._values)
        self._writers = Writers()
        self._version = 0
        self._env_steps = 0
        self.updates = 0  # gradients applied, predecessors' included whose state was restored
        self._meter = Meter(clock)

    @property
    def version(self) -> int:
        """How many gradients were applied, from where `begin_above` said to begin."""
        return self._version

    @property
    def values(self) -> NDArray[np.float32]:
        """The newest values."""
        return self._fresh

    def push(self, push: Push) -> Pushed:
        """Apply a gradient or say why not, and return the fresh values."""
        assert push.gradient.shape == self._values.shape, "a push must fit the slice that it is for"
        self._meter.enter("applying")
        why = self._writers.hear(push.worker, push.generation, push.step) or self._apply(push)
        self._meter.count(f"pushes_{why.replace(' ', '_') or 'applied'}")
        self._meter.enter("idle")
        return Pushed(version=self._version, values=self._fresh, applied=not why, why=why)

    def fetch(self, newer_than: int) -> tuple[int, NDArray[np.float32]] | None:
        """Return `(version, values)`, or None if `newer_than` is already the newest."""
        if newer_than >= self._version:
            self._meter.count("nothing_newer")
            return None
        self._meter.count("fetched")
        return self._version, self._fresh

    def begin_above(self, version: int) -> None:
        """Count on from above `version`, which a predecessor of this slice may have reached."""
        self._version = max(self._version, version + 1)

    def state(self) -> State:
        """Return the values, what moves them, and who was heard."""
        arrays: Columns = {"values": self._values.copy(), "writers": self._writers.table()}
        own = State(arrays, {"version": self._version, "env_steps": self._env_steps, "updates": self.updates})
        return own.and_(self._optimizer.state().within("optimizer"))

    def restore(self, state: State) -> None:
        """Go on as another slice of the same settings would; the version does not go back."""
        require_same("size of a slice", len(state.arrays["values"]), len(self._values))
        self._optimizer.restore(state.under("optimizer"))
        self._values[...] = state.arrays["values"]
        self._writers.restore(state.arrays["writers"])
        self._version = max(self._version, state.meta["version"])
        self._env_steps, self.updates = state.meta["env_steps"], state.meta["updates"]

    def stats(self) -> dict[str, Any]:
        """Return what was applied, what was not and why, and how late it came."""
        self._meter.gauge("version", self._version)
        self._meter.gauge("env_steps", self._env_steps)
        self._meter.gauge("learning_rate", self._config.rate_at(self._env_steps))
        return self._meter.snapshot()

    def _apply(self, push: Push) -> Refusal:
        rate = self._config.rate_at(self._env_steps)
        self._env_steps += push.env_steps
        if not (isfinite(push.norm) and np.isfinite(push.gradient).all()):
            return "not finite"
        lag = max(0, self._version - push.version)
        self._meter.observe("lag", lag)
        weight = self._config.weight_of(lag)
        if not weight:
            return "stale"
        self._optimizer.step(push.gradient, weight * rate)
        self._version += 1
        self.updates += 1
        return ""
