"""What a priority may be, and what it weighs in the tree."""

import numpy as np
from numpy.typing import NDArray

LARGEST = float(np.finfo(np.float32).max)  # larger ones could overflow the tree's sums


def usable(priorities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which priorities may reach the tree; NaN, infinite and negative ones may not."""
    return (priorities >= 0.0) & (priorities <= LARGEST)


def largest(priorities: NDArray[np.float64], so_far: float) -> float:
    """Return the largest priority seen, unusable ones left out."""
    return float(priorities.max(initial=so_far, where=usable(priorities)))


def masses(priorities: NDArray[np.float64], alpha: float, eps: float) -> NDArray[np.float64]:
    """Return (priority + eps) ** alpha: positive, so each window that is there can be drawn."""
    weighed: NDArray[np.float64] = (priorities + eps) ** alpha
    return weighed
