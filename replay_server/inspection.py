"""What a shard holds, in figures cheap enough to be asked for once a second."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starling.metrics import NUM_BINS

MOST = 65_536  # slots that are looked at, evenly over the shard
MASS_BIN = 15  # the bin of masses in [0.5, 1)


def figures(
    masses: NDArray[np.float64],
    column: Callable[[str, NDArray[np.int64]], NDArray[Any]],
    times_sampled: NDArray[np.uint32],
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Return gauges and histograms over the windows that are there, all by their first steps.

    Of a large shard only some are looked at, and count for all. `masses`: bin i holds those in [2^(i-16), 2^(i-15)),
    the first and the last one also what is beyond. The others are as in `Meter.observe`, 0 in a bin of its own:
    `times_sampled`, and `versions_behind` the newest version that is there.
    """
    stride = -(-len(masses) // MOST) | 1  # odd: copies of an environment are often a power of two
    slots = np.arange(0, len(masses), stride)
    slots = slots[masses[::stride] > 0.0]
    if not slots.size:
        return {}, {}
    versions = column("version", slots)
    newest = versions.max()
    histograms = {
        "masses": _binned(masses[slots], MASS_BIN),
        "times_sampled": _binned(times_sampled[slots]),
        "versions_behind": _binned(newest - versions),
    }
    gauges = {"oldest_version": float(versions.min()), "newest_version": float(newest)}
    return gauges, {name: (counts * stride).tolist() for name, counts in histograms.items()}


def _binned(values: NDArray[Any], shift: int = 0) -> NDArray[np.int64]:
    bins = np.frexp(values.astype(np.float64))[1] + shift
    return np.bincount(np.clip(bins, 0, NUM_BINS - 1), minlength=NUM_BINS)
