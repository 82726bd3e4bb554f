"""Parameters as they travel and rest: one contiguous float32 buffer and a manifest of what lies where."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of the arrays in a buffer, in order and without gaps."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Float32 values in all."""
        return sum(prod(shape) for _, shape in self.entries)

    def spans(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Yield each array's name, place in the buffer, and shape."""
        start = 0
        for name, shape in self.entries:
            stop = start + prod(shape)
            yield name, slice(start, stop), shape
            start = stop

    def head(self, count: int) -> "Layout":
        """Return the layout of the first `count` arrays."""
        return Layout(self.entries[:count])


@dataclass(frozen=True, slots=True)
class Params:
    """A layout and its values; the arrays by name are views into the buffer."""

    layout: Layout
    buffer: NDArray[np.float32]

    def __post_init__(self) -> None:
        assert self.buffer.shape == (self.layout.size,), "the buffer does not fit its layout"

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return every array by name, as views."""
        return {name: self.buffer[span].reshape(shape) for name, span, shape in self.layout.spans()}

    def copy(self) -> "Params":
        """Return the same values in a buffer of their own."""
        return Params(self.layout, self.buffer.copy())

    @staticmethod
    def of(arrays: Mapping[str, NDArray[np.float32]]) -> "Params":
        """Pack arrays into one buffer, in their order."""
        layout = Layout(tuple((name, array.shape) for name, array in arrays.items()))
        flat = [np.asarray(array, np.float32).reshape(-1) for array in arrays.values()]
        return Params(layout, np.concatenate(flat) if flat else np.empty(0, np.float32))
