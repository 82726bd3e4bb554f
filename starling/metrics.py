"""What a role did and where its time went: counters, gauges, histograms, and time by named state."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

Clock = Callable[[], float]
"""Seconds, only growing. Handed to every role: none of them reads a clock by itself."""

NUM_BINS = 24  # bin 0 holds zero; bin i holds [2^(i-1), 2^i)


def no_clock() -> float:
    """Stand still: for tests and for runs whose time shares nobody asks for."""
    return 0.0


class Meter:
    """Counts one role's work and the seconds it spent in each named state.

    States follow one another: entering one ends the last, so the shares sum to 1 by construction.
    Written by the role's thread; `snapshot` may be called from another one.
    """

    def __init__(self, clock: Clock, state: str = "idle") -> None:
        self._clock = clock
        self._state = state
        self._since = clock()
        self._turns = 0
        self._time_s: dict[str, float] = {state: 0.0}
        self._counts: dict[str, int] = {}
        self._gauges: dict[str, float] = {}
        self._histograms: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}

    def enter(self, state: str) -> None:
        """End the present state and begin another."""
        now = self._clock()
        spent, self._since = now - self._since, now  # before it is added: a snapshot in between must not count it twice
        self._time_s[self._state] = self._time_s.get(self._state, 0.0) + spent
        self._state = state
        self._turns += 1

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter that only grows."""
        self._counts[name] = self._counts.get(name, 0) + by

    def gauge(self, name: str, value: float) -> None:
        """Set a figure that goes up and down."""
        self._gauges[name] = float(value)

    def observe(self, name: str, values: ArrayLike) -> None:
        """Add whole numbers >= 0 to a histogram with one bin for zero and one for each power of two."""
        whole = np.maximum(np.asarray(values, np.int64).reshape(-1), 0)
        bins = np.minimum(np.frexp(whole.astype(np.float64))[1], NUM_BINS - 1)
        counts = np.bincount(bins, minlength=NUM_BINS)
        self._histograms[name] = self._histograms.get(name, np.zeros(NUM_BINS, np.int64)) + counts

    def snapshot(self) -> dict[str, Any]:
        """Return everything since the start, as plain numbers."""
        time_s = dict(self._time_s)
        time_s[self._state] = time_s.get(self._state, 0.0) + self._clock() - self._since
        return {
            "turns": self._turns,
            "time_s": time_s,
            "counts": dict(self._counts),
            "gauges": dict(self._gauges),
            "histograms": {name: counts.tolist() for name, counts in self._histograms.copy().items()},
        }


@runtime_checkable
class Measured(Protocol):
    """Whoever says what it did."""

    def stats(self) -> dict[str, Any]:
        """Return a Meter's snapshot."""


def quantile(counts: ArrayLike, q: float) -> float:
    """Return the lower edge of the histogram bin in which quantile `q` falls; NaN when it is empty."""
    bins = np.asarray(counts, np.int64)
    if not bins.sum():
        return float("nan")
    bin_ = int(np.searchsorted(np.cumsum(bins), q * bins.sum()))
    return float(2 ** (bin_ - 1)) if bin_ else 0.0
