"""A sum tree in numpy: draws leaves in proportion to their masses, hundreds at a time."""

import numpy as np
from numpy.typing import NDArray

Leaves = NDArray[np.integer]


class SumTree:
    """Masses at the leaves and, above every two, their sum.

    A node is always recomputed from its children and never adjusted, so the sums do not drift, however
    many changes came before.
    """

    def __init__(self, num_leaves: int) -> None:
        self._width = 1 << (num_leaves - 1).bit_length()
        self._nodes = np.zeros(2 * self._width)  # the root is at 1, the children of i at 2 i and 2 i + 1
        self._pairs = self._nodes.reshape(-1, 2)  # row i holds the children of i

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self._nodes[1])

    def get(self, leaves: Leaves) -> NDArray[np.float64]:
        """Return the masses of leaves."""
        return self._nodes.take(leaves + self._width)

    def set(self, leaves: Leaves, masses: NDArray[np.float64]) -> None:
        """Set the masses of leaves, each finite and >= 0; of a leaf given twice, the last one counts."""
        nodes = leaves + self._width
        self._nodes[nodes] = masses
        width = self._width
        while width > 1 and width > len(nodes):
            width >>= 1
            nodes = nodes >> 1
            children = self._pairs.take(nodes, axis=0)
            self._nodes[nodes] = children[:, 0] + children[:, 1]
        while width > 1:  # a level narrower than the change is cheaper to add up whole
            width >>= 1
            children = self._pairs[width : 2 * width]
            np.add(children[:, 0], children[:, 1], out=self._nodes[width : 2 * width])

    def find(self, prefix_sums: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return for each number in [0, total) the leaf at which the running sum first exceeds it.

        Never a leaf without mass while the total is positive, wherever rounding puts the number.
        """
        rest = np.array(prefix_sums, np.float64)
        nodes = np.ones(len(rest), np.int64)
        for _ in range(self._width.bit_length() - 1):
            children = self._pairs.take(nodes, axis=0)
            left = children[:, 0]
            right = (rest >= left) & (children[:, 1] > 0.0)
            rest -= left * right
            nodes = 2 * nodes + right
        return nodes - self._width
