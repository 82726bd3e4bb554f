"""Exploration of those who learn values: each copy takes random actions with a probability of its own."""

import numpy as np
from numpy.typing import NDArray

from starling.types import Array, Place


def ladder(place: Place, base: float, exponent: float) -> NDArray[np.float32]:
    """Give each copy its own epsilon, from `base` down a geometric ladder over all copies of all actors."""
    total = place.num_actors * place.num_copies
    rank = place.actor * place.num_copies + np.arange(place.num_copies)
    epsilon: NDArray[np.float32] = np.power(base, 1.0 + exponent * rank / max(total - 1, 1)).astype(np.float32)
    return epsilon


def epsilon_greedy(q: Array, epsilon: NDArray[np.float32], rng: np.random.Generator) -> Array:
    """Return a random action with each copy's epsilon, else that of the largest of `[E, A]`."""
    copies, actions = q.shape
    # drawn for every copy, so that one copy's epsilon does not shift another's random numbers; in one call, and
    # scaled: `rng.integers` alone would cost more than the rest of this function
    luck, choice = rng.random((2, copies))
    action: Array = np.where(luck < epsilon, (choice * actions).astype(np.int64), q.argmax(1))
    return action
