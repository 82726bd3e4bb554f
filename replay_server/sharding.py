"""The arithmetic by which many shards sample like one: shares of a batch, and importance weights."""

import numpy as np
from numpy.typing import NDArray


def allocate(batch: int, shares: NDArray[np.float64], u: float) -> NDArray[np.int64]:
    """Split a batch over shards so that each gets `batch * share` windows in expectation over u in [0, 1).

    `shares` sum to 1. Systematic rounding: all of the counts follow from the same `u`, so they sum to `batch`, and
    none is off by one or more.
    """
    edges = np.concatenate([[0.0], batch * np.cumsum(shares)])
    edges[shares.nonzero()[0].max() + 1 :] = batch  # where rounding left the sum short
    whole: NDArray[np.int64] = np.minimum(np.floor(edges + u), batch).astype(np.int64)  # u may round up to 1
    return np.diff(whole)


def importance_weights(
    probabilities: NDArray[np.float64],  # [n] within the shard
    mass: float,
    share: float,
    total_mass: float,
    total_size: int,
    beta: float,
) -> NDArray[np.float64]:
    """Return the weights of one shard's windows, to be normalised over the batch.

    One big tree would draw a window with P = probability * mass / total_mass and weight it (size * P) ** -beta.
    Here it was drawn with P_eff = probability * share, by a share that was fixed before the masses were known; the
    factor P / P_eff makes the expected update that of the big tree. It is 1 when the masses have not changed.
    """
    if not len(probabilities):
        return probabilities  # a shard without mass or share has no windows to weigh
    big_tree = (total_size * probabilities * (mass / total_mass)) ** -beta
    correction: float = mass / (total_mass * share)
    return big_tree * correction
