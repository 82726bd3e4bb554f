"""The learner: batches in, updates, priorities and new versions of the parameters out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from learner.config import LearningConfig
from learner.device import device_of
from learner.feeds import Feed, Prioritized, Taken
from learner.inlet import Inlet
from learner.optimizers import Optimizers
from starling.errors import RoleError
from starling.metrics import Clock, Meter
from starling.networks.nets import LearnerNets
from starling.params import Params
from starling.spec import Spec
from starling.state import State
from starling.types import Algorithm, Array, Batch, Losses, ParamSink, Progress, Updating

MAX_BAD_BATCHES = 10  # in a row; one is noise, ten are a broken run


class Learner:
    """Repeats: take a batch, step the optimizers, return priorities, publish now and then.

    A batch whose loss or gradient is not finite moves nothing and is counted, so that no NaN reaches an actor or a
    priority. Called from one thread, `stats` excepted.
    """

    def __init__(
        self,
        config: LearningConfig,
        algorithm: Algorithm,
        spec: Spec,
        feed: Feed,
        sink: ParamSink,
        seed: int,
        clock: Clock,
    ) -> None:
        torch.set_num_threads(config.threads)
        self.device = device_of(config)
        self._config = config
        self._algorithm = algorithm
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self.nets = LearnerNets(
            algorithm.networks(spec),
            algorithm.targets(),
            spec,
            torch.Generator().manual_seed(seed),
            self.device,
        )
        acting = tuple(f"{name}." for name in algorithm.acting(spec))
        self._num_acting = sum(name.startswith(acting) for name, _ in self.nets.layout.entries)
        self._optimizers = Optimizers(config.optimizer, algorithm.groups(), self.nets)
        self._observes = algorithm.window is None and self.nets.normalises_inputs
        self._feed = feed
        # asked once: what a Protocol asks of an object costs a tenth of a millisecond
        self._updating = algorithm if isinstance(algorithm, Updating) else None
        self._prioritized = feed if isinstance(feed, Prioritized) else None
        self._sink = sink
        self._meter = Meter(clock)
        self._metrics: dict[str, torch.Tensor] = {}
        self._bad_in_a_row = 0
        self._published = False
        self.updates = 0
        self.steps = 0  # learned from
        self.version = 0

    @property
    def inlet(self) -> Inlet | None:
        """Where actors' unrolls come in, if they come to the learner itself."""
        return self._feed.inlet

    def begin_from(self, params: Params, version: int, updates: int, steps: int = 0) -> None:
        """Take over published parameters; the next version is above theirs, so that versions only grow."""
        self.nets.load(params)
        self.version, self.updates, self.steps = version, updates, steps

    def initialise(self, arrays: Mapping[str, Array]) -> None:
        """Begin with these values where networks have arrays of these names."""
        self.nets.load_some(arrays)

    def state(self) -> State:
        """Return all that training changes, the account of its source included. Called between steps."""
        own = {name: getattr(self, name) for name in ("updates", "steps", "version")}
        own["bad_in_a_row"] = self._bad_in_a_row
        parts = {"nets": self.nets.state(), "optimizers": self._optimizers.state(), "source": self._feed.state()}
        state = State({"generator": self._generator.get_state().numpy().copy()}, own)
        for name, part in parts.items():
            state = state.and_(part.within(name))
        return state

    def succeed(self, state: State) -> None:
        """Go on for a learner that died after this state: with all that is its own, but not with its feed's account."""
        self.nets.restore(state.under("nets"))
        self._optimizers.restore(state.under("optimizers"))
        self._generator.set_state(torch.tensor(state.arrays["generator"]))
        self.updates, self.version = state.meta["updates"], state.meta["version"]
        self.steps = state.meta.get("steps", 0)  # there was none before unrolls were learned from whole
        self._meter.gauge("began_at", self.updates)

    def restore(self, state: State) -> None:
        """Go on from a state; the next step publishes it first, under a new version."""
        self.succeed(state)
        self._feed.restore(state.under("source"))
        self._bad_in_a_row = state.meta["bad_in_a_row"]
        self._published = False

    def params(self) -> Params:
        """Return a copy of what actors need."""
        return self.nets.params(self._num_acting)

    def publish(self) -> None:
        """Make the present parameters the next version."""
        self._meter.enter("publishing")
        self.version += 1
        self._sink.publish(self.version, self.params())
        self._meter.gauge("version", self.version)

    def step(self) -> Progress:
        """Make one update, or report why there is no batch."""
        if not self._published:
            self._published = True
            self.publish()  # actors can't begin without a first version
        self._meter.enter("waiting_batch")
        taken = self._feed.next(self.version)
        if isinstance(taken, str):
            return Progress(waits=taken)
        self._meter.enter("computing")
        losses = self._update(taken.batch)
        if losses is None:
            return self._skip(taken)
        self._bad_in_a_row = 0
        self.updates += 1
        self.steps += taken.amount.get("steps", 0)
        self.nets.follow(self.updates)
        if self._observes:  # after the update, whose ratios are between policies that see through the same moments
            self.nets.observe_inputs(taken.batch.obs[:-1][taken.batch.valid])
        self._metrics = {**losses.metrics, **{f"loss_{name}": loss.detach() for name, loss in losses.groups.items()}}
        if losses.priorities is not None and taken.ticket is not None:
            self._meter.enter("returning_priorities")
            assert self._prioritized is not None, "who gives tickets takes priorities"
            self._prioritized.update_priorities(taken.ticket, losses.priorities)
        self._account(taken)
        if self.updates % self._config.updates_per_version == 0:
            self.publish()
        self._meter.enter("idle")
        return Progress(work={"updates": 1})

    def stats(self) -> dict[str, Any]:
        """Return work, time shares, the lag of what was learned from, the last batch's figures and the source's."""
        for name, value in self._metrics.copy().items():
            self._meter.gauge(name, float(value))
        stats = self._meter.snapshot()
        stats["turns"] += self._optimizers.steps  # an update of many is long, but does not hang
        for kind, figures in self._feed.stats().items():
            stats[kind] |= figures
        return stats

    @property
    def progress(self) -> float:
        """How far annealing is, from 0 to 1."""
        whole = self._config.annealing_steps
        return min(1.0, self.steps / whole) if whole else 0.0

    def _update(self, batch: Batch) -> Losses | None:
        """Learn from a batch; None, having moved nothing, if it is not finite."""
        if self._config.annealing_steps:
            batch = replace(batch, progress=self.progress)
        self._optimizers.begin(self.updates, 1.0 - self.progress)
        if self._updating is not None:
            return self._updating.update(self.nets, self._optimizers, batch, self._generator)
        losses = self._algorithm.losses(self.nets, batch, self._generator)
        return losses if self._optimizers.step(losses.groups) else None

    def _account(self, taken: Taken) -> None:
        self._meter.count("updates")
        for name, amount in taken.amount.items():
            self._meter.count(name, amount)
        self._meter.observe("lag", self.version - taken.versions[taken.versions > 0])  # recorded steps are of none

    def _skip(self, taken: Taken) -> Progress:
        """Count a batch that is not finite; ten in a row end the run, naming what is wrong with them."""
        self._meter.count("bad_batches")
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= MAX_BAD_BATCHES:
            poisoned = [
                name for name in taken.columns[0] if any(_is_poisoned(columns[name]) for columns in taken.columns)
            ]
            raise RoleError(
                f"learner got {self._bad_in_a_row} batches in a row whose loss or gradient is not finite "
                f"(columns that are not finite: {', '.join(poisoned) or 'none'}); lower "
                "learner.optimizer.learning_rate or check the environment's rewards and observations"
            )
        if self._config.updates_per_version == 1:
            self.publish()  # the same again: actors may wait for the version after this batch
        return Progress(work={"bad_batches": 1})


def _is_poisoned(column: Array) -> bool:
    return bool(np.issubdtype(column.dtype, np.floating) and not np.isfinite(column).all())
