"""From sampled windows, or whole unrolls, to batches of tensors on the learner's device."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.inlet import Inlet
from starling.batches import batch_of
from starling.metrics import Measured
from starling.state import Lasting, State
from starling.types import Array, Batch, Columns, Ticket, Unroll, UnrollSource, WindowSource
from starling.windows import Window, stacked

ONE_STEP = Window()
OWN_FIELDS = ("obs", "action", "reward", "terminated", "truncated", "valid", "version")


class Taken(NamedTuple):
    """What one update learns from."""

    batch: Batch
    versions: NDArray[np.int64]  # of the parameters that acted, of each step that counts
    amount: Mapping[str, int]  # what it is made of, by the name under which it is counted
    columns: tuple[Columns, ...]  # where what is not finite can be found
    ticket: Ticket | None = None  # of windows, for their priorities


class Feed(Lasting, Protocol):
    """Where a learner's batches come from; its state is the account of what was taken."""

    @property
    def inlet(self) -> Inlet | None:
        """Where actors' unrolls come in, if they come to the learner itself."""

    def next(self, version: int) -> Taken | str:
        """Return the next batch for a learner at this version, or the reason why there is none."""

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the source's own counts and gauges."""


@runtime_checkable
class Prioritized(Protocol):
    """A feed whose windows have priorities."""

    def update_priorities(self, ticket: Ticket, priorities: Tensor) -> None:
        """Send a batch's new priorities to where its windows are."""


def to_batch(
    columns: Columns,
    weights: Array,
    device: torch.device,
    window: Window = ONE_STEP,
    starts: Mapping[str, Array] = MappingProxyType({}),
) -> Batch:
    """Return the columns as tensors, frames as stacks; what the algorithm stored itself goes to `extras`."""

    def tensor(array: Array) -> Tensor:
        # torch can't mark a tensor read-only, so arrays from shared memory are copied; so are parts of records
        whole = array.flags.writeable and array.flags.c_contiguous
        shared = torch.from_numpy(array if whole else array.copy())
        return shared if device.type == "cpu" else shared.pin_memory().to(device, non_blocking=True)

    tensors = {name: tensor(array) for name, array in columns.items()}
    tensors["obs"] = stacked(tensors["obs"], window)  # on the device: each frame goes there once
    own: dict[str, Any] = {name: tensors.pop(name) for name in OWN_FIELDS}
    states = {name: tensor(array) for name, array in starts.items()}
    return Batch(**own, weights=tensor(np.asarray(weights, np.float32)), extras=tensors, starts=states)


class ReplayFeed:
    """Takes batches from the replay service and brings their priorities back."""

    inlet = None

    def __init__(self, source: WindowSource, device: torch.device, window: Window) -> None:
        self._source = source
        self._device = device
        self._window = window

    def next(self, version: int) -> Taken | str:
        """Return the next batch, with what it was made of, or the reason why there is none."""
        sampled = self._source.take()
        if isinstance(sampled, str):
            return sampled
        columns = sampled.columns
        batch = to_batch(columns, sampled.weights, self._device, self._window, sampled.starts)
        versions = columns["version"][columns["valid"]].astype(np.int64)
        return Taken(batch, versions, {"windows": columns["valid"].shape[1]}, (columns,), sampled.ticket)

    def state(self) -> State:
        """Return the account of what was taken, if the source keeps one."""
        return self._source.state() if isinstance(self._source, Lasting) else State()

    def restore(self, state: State) -> None:
        """Go on with another's account."""
        if isinstance(self._source, Lasting):
            self._source.restore(state)

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the source's own gauges, if it has any."""
        return {"gauges": self._source.stats()["gauges"]} if isinstance(self._source, Measured) else {}

    def update_priorities(self, ticket: Ticket, priorities: Tensor) -> None:
        """Send a batch's new priorities to where its windows are."""
        self._source.update_priorities(ticket, priorities.cpu().numpy().astype(np.float64))


class UnrollPlace(Inlet, UnrollSource, Measured, Protocol):
    """Where unrolls are between the actors and the learner."""

    def clear(self) -> None:
        """Begin anew, and empty."""


class UnrollFeed:
    """Makes a batch of all the unrolls that its place gives at once."""

    def __init__(self, place: UnrollPlace, device: torch.device) -> None:
        self.inlet = place
        self._device = device

    def next(self, version: int) -> Taken | str:
        """Return the next batch for a learner at this version, or the reason why there is none."""
        unrolls = self.inlet.take(version)
        if isinstance(unrolls, str):
            return unrolls
        versions = np.concatenate([_versions(unroll) for unroll in unrolls])
        amount = {"unrolls": len(unrolls), "steps": len(versions)}
        return Taken(batch_of(unrolls, self._device), versions, amount, tuple(unroll.columns for unroll in unrolls))

    def state(self) -> State:
        """Return nothing: unrolls are played again."""
        return State()

    def restore(self, state: State) -> None:
        """Begin with an empty place."""
        self.inlet.clear()

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the figures of its place."""
        return self.inlet.stats()


def _versions(unroll: Unroll) -> NDArray[np.int64]:
    version: NDArray[np.int64] = unroll.columns["version"][unroll.columns["acted"]]
    return version
