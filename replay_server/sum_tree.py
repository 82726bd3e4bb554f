"""A sum tree in numpy: draws leaves in proportion to their masses, hundreds at a time."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Leaves = NDArray[np.integer]

FAMILY = 8  # leaves: a line of the processor's cache
TOP = 1024  # nodes that are added up one after the other: that costs less than ten levels above them would
MOST_CHANGED = 1 << 16  # leaves, before they are added up although nobody draws
DENSE = 8  # nodes side by side cost as much as one that must be looked up
ELDER = np.tri(FAMILY, k=-1)  # in the row of each member of a family, ones for those before it


class SumTree:
    """Masses at the leaves and, above every eight, their sum, and above every two sums theirs, until few are left.

    A node is always recomputed from its children and never adjusted, so the sums do not drift, however
    many changes came before, and equal leaves make equal trees. Sums are made when they are asked for: what many
    inserts changed between two draws is added up once.
    """

    def __init__(self, num_leaves: int, top: int = TOP) -> None:
        assert top >= 2, "every two nodes have one above them"
        families = -(-num_leaves // FAMILY)
        self._leaves = np.zeros(families * FAMILY)  # untouched pages cost nothing
        self._families = self._leaves.view(f"V{FAMILY * self._leaves.itemsize}")  # what numpy takes in one piece
        self._levels = [np.zeros(families + families % 2)]
        while (width := len(self._levels[-1])) > top:
            self._levels.append(np.zeros(width // 2 + width // 2 % 2))
        self._edges = np.zeros(len(self._levels[-1]) + 1)  # the running sums of the top
        self._changed: list[Leaves] = []  # and not added up yet
        self._cleared: list[tuple[int, int]] = []  # the same, leaves side by side
        self._num_changed = 0
        self._stale = False  # the running sums

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return self._leaves.nbytes + sum(level.nbytes for level in self._levels)

    @property
    def leaves(self) -> NDArray[np.float64]:
        """All masses, for reading."""
        return self._leaves

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self._running_sums()[-1])

    @property
    def pending(self) -> int:
        """Leaves that changed since the sums were made."""
        return self._num_changed

    def get(self, leaves: Leaves) -> NDArray[np.float64]:
        """Return the masses of leaves."""
        return self._leaves.take(leaves, mode="clip")

    def set(self, leaves: Leaves, masses: NDArray[np.float64] | float) -> None:
        """Set the masses of leaves, each finite and >= 0; of a leaf given twice, the last one counts.

        The tree keeps `leaves` until it has added up: they must not change.
        """
        if not leaves.size:
            return
        self._leaves[leaves] = masses
        self._changed.append(leaves)
        self._note_changes(leaves.size)

    def clear(self, begin: int, end: int) -> int:
        """Take the masses of consecutive leaves, and return how many had one."""
        masses = self._leaves[begin:end]
        had = int(np.count_nonzero(masses))
        if had:
            masses.fill(0.0)
            self._cleared.append((begin, end))
            self._note_changes(end - begin)
        return had

    def find(self, prefix_sums: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return for each number in [0, total) the leaf at which the running sum first exceeds it.

        Never a leaf without mass while the total is positive, wherever rounding puts the number. Numbers in order
        find their way several times faster.
        """
        edges = self._running_sums()
        nodes: NDArray[np.int64] = edges[1:-1].searchsorted(prefix_sums, side="right")
        rest = prefix_sums - edges.take(nodes, mode="clip")
        for level in self._levels[-2::-1]:
            nodes += nodes
            left = level.take(nodes, mode="clip")
            right = rest >= left
            nodes += right
            left *= right
            rest -= left
        np.minimum(nodes, len(self._families) - 1, out=nodes)  # rounding may have led past the last one
        before = ELDER @ self._families.take(nodes, mode="clip").view(np.float64).reshape(-1, FAMILY).T
        reached = (before <= rest).view(np.uint8)  # by elder siblings' masses; the eldest always is
        nodes *= FAMILY
        nodes += np.add.reduce(reached, axis=0, dtype=np.uint8)
        nodes -= 1
        self._step_back(nodes)
        return nodes

    def _running_sums(self) -> NDArray[np.float64]:
        if self._num_changed:
            self._add_up()
        if self._stale:
            np.add.accumulate(self._levels[-1], out=self._edges[1:])
            self._stale = False
        return self._edges

    def _note_changes(self, count: int) -> None:
        self._stale = True
        self._num_changed += count
        if self._num_changed > MOST_CHANGED:
            self._add_up()

    def _add_up(self) -> None:
        changed, cleared, size = self._changed, self._cleared, self._num_changed
        self._changed, self._cleared, self._num_changed = [], [], 0
        leaves = np.concatenate(changed) if changed else np.empty(0, np.int64)
        low = min([begin for begin, _ in cleared], default=len(self.leaves))
        high = max([end - 1 for _, end in cleared], default=0)
        if leaves.size:
            low, high = min(low, int(np.minimum.reduce(leaves))), max(high, int(np.maximum.reduce(leaves)))
        low, high = low // FAMILY, high // FAMILY
        if high - low < DENSE * size:  # what lies between is added up again, which changes nothing
            self._levels[0][low : high + 1] = _sums(self._families[low : high + 1])
        else:
            leaves = np.concatenate([leaves, *(np.arange(begin, end) for begin, end in cleared)])
            nodes = leaves // FAMILY
            self._levels[0][nodes] = _sums(self._families.take(nodes, mode="clip"))
        for below, level in pairwise(self._levels):
            low, high = low >> 1, high >> 1
            if high - low < DENSE * size:
                both = below[2 * low : 2 * high + 2]
                np.add(both[::2], both[1::2], out=level[low : high + 1])
            else:
                nodes = nodes >> 1
                pairs = below.reshape(-1, 2).take(nodes, axis=0, mode="clip")
                level[nodes] = pairs[:, 0] + pairs[:, 1]

    def _step_back(self, found: NDArray[np.int64]) -> None:
        """Rounding may lead past the last mass: then that is the leaf."""
        masses = self.get(found)
        if np.count_nonzero(masses) == len(masses) or not self.total:
            return
        for index in np.flatnonzero(masses == 0.0):
            found[index] = np.flatnonzero(self._leaves[: found[index]])[-1]


def _sums(families: NDArray[np.void]) -> NDArray[np.float64]:
    """Return the sum of each family, added up the same way wherever it lies."""
    sums: NDArray[np.float64] = families.view(np.float64)
    while len(sums) > len(families):
        sums = sums[::2] + sums[1::2]
    return sums
