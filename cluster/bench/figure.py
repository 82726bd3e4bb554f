"""A measured figure beside its limit, and how both are measured so that a noisy machine disturbs them alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from cluster.rows import as_row

WINDOWS = 20
TURNS = 5

Work = Callable[[], int]
"""Does a little work, and returns how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure and its limit, in the same unit."""

    name: str
    value: float
    unit: str
    limit: float
    limit_name: str
    better: Literal["higher", "lower"] = "higher"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How near the value comes to its limit: 1 is at it, and larger is always better."""
        if self.better == "higher":
            return self.value / self.limit if self.limit else 0.0
        return self.limit / self.value if self.value else 0.0

    def row(self) -> dict[str, Any]:
        """Return what is written to a file."""
        return {**as_row(self), "ratio": self.ratio}


def rates(works: Sequence[Work], seconds: float) -> list[float]:
    """Return how much of each work is done per second: in turn for short windows, and then each one's median."""
    for work in works:
        work()  # the first time builds caches
    seen: list[list[float]] = [[] for _ in works]
    for _ in range(WINDOWS):
        for work, its in zip(works, seen, strict=True):
            its.append(rate(work, seconds / WINDOWS / len(works)))
    return [median(its) for its in seen]


def typical_s(works: Sequence[Work], seconds: float) -> list[float]:
    """Return how long a call of each work takes, in the median: in turn, but long enough to find its caches filled.

    What happens to few of the calls is not in it: what others do on the machine, a full disk, sums put off until then.
    """
    seen: list[list[float]] = [[] for _ in works]
    for _ in range(TURNS):
        for work, its in zip(works, seen, strict=True):
            its += _timed(work, seconds / TURNS / len(works))
    return [median(its) for its in seen]


def _timed(work: Work, seconds: float) -> list[float]:
    """Repeat the work for a while, at least once, and return how long each time took."""
    times, began = list[float](), time.perf_counter()
    now = began
    while not times or now - began < seconds:
        before = now
        work()
        now = time.perf_counter()
        times.append(now - before)
    return times


def rate(work: Work, seconds: float) -> float:
    """Repeat the work for a while, at least once, and return how much of it was done per second."""
    done, began = 0, time.perf_counter()
    while True:
        done += work()
        passed = time.perf_counter() - began
        if passed >= seconds:
            return done / passed
