"""The learner: batches in, updates, priorities and new versions of the parameters out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from learner.config import LearnerConfig
from learner.feeds import ReplayFeed
from learner.optimizers import Optimizers
from starling.errors import RoleError, check
from starling.metrics import Clock, Meter
from starling.networks.nets import LearnerNets
from starling.params import Params
from starling.spec import Spec
from starling.state import State
from starling.types import Algorithm, Array, ParamSink, Progress, Sampled, WindowSource

MAX_BAD_BATCHES = 10  # in a row; one is noise, ten are a broken run


class Learner:
    """Repeats: take a batch, step the optimizers, return priorities, publish now and then.

    A batch whose loss or gradient is not finite moves nothing and is counted, so that no NaN reaches an actor or a
    priority. Called from one thread, `stats` excepted.
    """

    def __init__(
        self,
        config: LearnerConfig,
        algorithm: Algorithm,
        spec: Spec,
        source: WindowSource,
        sink: ParamSink,
        seed: int,
        clock: Clock,
    ) -> None:
        cuda = torch.cuda.is_available()
        check(config.device != "cuda" or cuda, "learner.device must be auto or cpu where there is no GPU, got cuda")
        torch.set_num_threads(config.threads)
        self.device = torch.device("cuda" if cuda and config.device != "cpu" else "cpu")
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
        assert algorithm.window is not None, "batches are of windows"
        self._feed = ReplayFeed(source, self.device, algorithm.window)
        self._sink = sink
        self._meter = Meter(clock)
        self._metrics: dict[str, torch.Tensor] = {}
        self._bad_in_a_row = 0
        self._published = False
        self.updates = 0
        self.version = 0

    def begin_from(self, params: Params, version: int, updates: int) -> None:
        """Take over published parameters; the next version is above theirs, so that versions only grow."""
        self.nets.load(params)
        self.version, self.updates = version, updates

    def initialise(self, arrays: Mapping[str, Array]) -> None:
        """Begin with these values where networks have arrays of these names."""
        self.nets.load_some(arrays)

    def state(self) -> State:
        """Return all that training changes, the account of its source included. Called between steps."""
        own = {"updates": self.updates, "version": self.version, "bad_in_a_row": self._bad_in_a_row}
        parts = {"nets": self.nets.state(), "optimizers": self._optimizers.state(), "source": self._feed.state()}
        state = State({"generator": self._generator.get_state().numpy().copy()}, own)
        for name, part in parts.items():
            state = state.and_(part.within(name))
        return state

    def restore(self, state: State) -> None:
        """Go on from a state; the next step publishes it first, under a new version."""
        self.nets.restore(state.under("nets"))
        self._optimizers.restore(state.under("optimizers"))
        self._feed.restore(state.under("source"))
        self._generator.set_state(torch.tensor(state.arrays["generator"]))
        self.updates, self.version = state.meta["updates"], state.meta["version"]
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
        taken = self._feed.next()
        if isinstance(taken, str):
            return Progress(waits=taken)
        self._meter.enter("computing")
        batch, sampled = taken
        losses = self._algorithm.losses(self.nets, batch, self._generator)
        if not self._optimizers.step(losses.groups, self.updates):
            return self._skip(sampled)
        self._bad_in_a_row = 0
        self.updates += 1
        self.nets.follow(self.updates)
        self._metrics = {**losses.metrics, **{f"loss_{name}": loss.detach() for name, loss in losses.groups.items()}}
        self._meter.enter("returning_priorities")
        if losses.priorities is not None:
            self._feed.update_priorities(sampled, losses.priorities)
        self._account(sampled)
        if self.updates % self._config.publish_every == 0:
            self.publish()
        self._meter.enter("idle")
        return Progress(work={"updates": 1})

    def stats(self) -> dict[str, Any]:
        """Return work, time shares, the lag of what was learned from, the last batch's figures and the source's."""
        for name, value in self._metrics.copy().items():
            self._meter.gauge(name, float(value))
        for name, figure in self._feed.gauges().items():
            self._meter.gauge(name, figure)
        return self._meter.snapshot()

    def _account(self, sampled: Sampled) -> None:
        valid = sampled.columns["valid"]
        self._meter.count("updates")
        self._meter.count("windows", valid.shape[1])
        version = sampled.columns["version"][valid].astype(np.int64)
        self._meter.observe("lag", self.version - version[version > 0])  # recorded steps are of no version

    def _skip(self, sampled: Sampled) -> Progress:
        """Count a batch that is not finite; ten in a row end the run, naming what is wrong with them."""
        self._meter.count("bad_batches")
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= MAX_BAD_BATCHES:
            floats = {name: c for name, c in sampled.columns.items() if np.issubdtype(c.dtype, np.floating)}
            poisoned = [name for name, column in floats.items() if not np.isfinite(column).all()]
            raise RoleError(
                f"learner got {self._bad_in_a_row} batches in a row whose loss or gradient is not finite "
                f"(columns that are not finite: {', '.join(poisoned) or 'none'}); lower "
                "learner.optimizer.learning_rate or check the environment's rewards and observations"
            )
        return Progress(work={"bad_batches": 1})
