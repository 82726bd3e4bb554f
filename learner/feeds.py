"""From sampled windows to batches of tensors on the learner's device."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starling.metrics import Measured
from starling.state import Lasting, State
from starling.types import Array, Batch, Columns, Sampled, WindowSource
from starling.windows import Window, stacked

ONE_STEP = Window()
OWN_FIELDS = ("obs", "action", "reward", "terminated", "truncated", "valid", "version")


def to_batch(
    columns: Columns,
    weights: Array,
    device: torch.device,
    window: Window = ONE_STEP,
    starts: Mapping[str, Array] = MappingProxyType({}),
) -> Batch:
    """Return the columns as tensors, frames as stacks; what the algorithm stored itself goes to `extras`."""

    def tensor(array: Array) -> Tensor:
        # torch can't mark a tensor read-only, so arrays that came through shared memory are copied
        shared = torch.from_numpy(array if array.flags.writeable else array.copy())
        return shared if device.type == "cpu" else shared.pin_memory().to(device, non_blocking=True)

    tensors = {name: tensor(array) for name, array in columns.items()}
    tensors["obs"] = stacked(tensors["obs"], window)  # on the device: each frame goes there once
    own: dict[str, Any] = {name: tensors.pop(name) for name in OWN_FIELDS}
    states = {name: tensor(array) for name, array in starts.items()}
    return Batch(**own, weights=tensor(np.asarray(weights, np.float32)), extras=tensors, starts=states)


class ReplayFeed:
    """Takes batches from the replay service and brings their priorities back."""

    def __init__(self, source: WindowSource, device: torch.device, window: Window) -> None:
        self._source = source
        self._device = device
        self._window = window

    def next(self) -> tuple[Batch, Sampled] | str:
        """Return the next batch, with what it was made of, or the reason why there is none."""
        sampled = self._source.take()
        if isinstance(sampled, str):
            return sampled
        batch = to_batch(sampled.columns, sampled.weights, self._device, self._window, sampled.starts)
        return batch, sampled

    def state(self) -> State:
        """Return the account of what was taken, if the source keeps one."""
        return self._source.state() if isinstance(self._source, Lasting) else State()

    def restore(self, state: State) -> None:
        """Go on with another's account."""
        if isinstance(self._source, Lasting):
            self._source.restore(state)

    def gauges(self) -> Mapping[str, float]:
        """Return the source's own figures, if it has any."""
        return self._source.stats()["gauges"] if isinstance(self._source, Measured) else {}

    def update_priorities(self, sampled: Sampled, priorities: Tensor) -> None:
        """Send a batch's new priorities to where its windows are."""
        self._source.update_priorities(sampled.ticket, priorities.cpu().numpy().astype(np.float64))
