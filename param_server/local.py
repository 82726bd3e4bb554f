"""Slices in the same process: the sliced parameter server without a network between."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from param_server.config import SliceConfig
from param_server.slices import ParamSlice, cut, parts
from starling.gradients import Gradient, Versions
from starling.metrics import Clock


def make_slices(config: SliceConfig, values: NDArray[np.float32], clock: Clock) -> list[ParamSlice]:
    """Return slices that hold these parameters together."""
    return [ParamSlice(config, values[span], clock) for span in cut(len(values), config.slices)]


class LocalSlices:
    """A GradientSink whose slices answer at once; any number of workers may share it."""

    def __init__(self, slices: Sequence[ParamSlice]) -> None:
        self._slices = slices
        self._cuts = cut(sum(len(slice_.values) for slice_ in slices), len(slices))

    def push(self, gradient: Gradient) -> None:
        """Apply a gradient to every slice."""
        for slice_, push in zip(self._slices, parts(gradient, self._cuts), strict=True):
            slice_.push(push)

    def must_wait(self) -> str:
        """Never wait."""
        return ""

    def fetch(self, newer_than: Versions) -> tuple[Versions, NDArray[np.float32]] | None:
        """Return a copy of the present parameters, or None if no slice is newer than that."""
        versions = tuple(slice_.version for slice_ in self._slices)
        return None if versions == newer_than else (versions, _together(self._slices))


class LocalValues:
    """A ValueSource over slices."""

    def __init__(self, slices: Sequence[ParamSlice]) -> None:
        self._slices = slices

    def fetch(self, newer_than: int) -> tuple[int, NDArray[np.float32]] | None:
        """Return `(version, values)` of the whole, or None while a slice has nothing newer."""
        version = min(slice_.version for slice_ in self._slices)
        return None if version <= newer_than else (version, _together(self._slices))


def _together(slices: Sequence[ParamSlice]) -> NDArray[np.float32]:
    return np.concatenate([slice_.values for slice_ in slices])
