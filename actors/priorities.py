"""Priorities of the windows that an unroll completes, from what the actor believed while it acted."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from starling.types import Array, Believed, Columns
from starling.windows import Window, completed

ROWS = {
    "reward": "float32",
    "terminated": "bool",
    "ended": "bool",
    "acted": "bool",
    "age": "int32",
    "taken": "float32",
    "value": "float32",
}
"""What is kept of each row; `value` is of the observation that the row acted on"""


class Beliefs:
    """The last rows as their actor saw them: at most a window's length, all that later windows may begin in."""

    def __init__(self, window: Window, num_copies: int) -> None:
        self._window = window
        self._rows: Columns = {name: np.empty((0, num_copies), dtype) for name, dtype in ROWS.items()}

    def extend(
        self,
        rows: Columns,  # [T, E] of each of ROWS
        after: Array,  # [T, E] value of the last observation where an episode was truncated, else 0
        judge: Callable[[Believed], Array | None],
    ) -> NDArray[np.float32] | None:
        """Return the priorities of the windows that these rows complete, `[carried + T, E]`, NaN elsewhere."""
        carried = len(self._rows["reward"])
        rows = {name: np.concatenate([self._rows[name], rows[name]]) for name in ROWS}
        self._rows = {name: array[-self._window.length :].copy() for name, array in rows.items()}
        row, copy, steps = completed(self._window, rows["acted"], rows["ended"], rows["age"], carried)
        priorities = np.full(rows["reward"].shape, np.nan, np.float32)
        if not row.size:
            return priorities
        after = np.concatenate([np.zeros((carried, after.shape[1]), after.dtype), after])
        judged = judge(believed(self._window.length, rows, after, row, copy, steps))
        if judged is None:
            return None
        priorities[row, copy] = judged
        return priorities


def believed(
    length: int,
    rows: Columns,
    after: Array,
    row: NDArray[np.intp],
    copy: NDArray[np.intp],
    steps: NDArray[np.intp],
) -> Believed:
    """Gather windows from rows; the successor of a window that ends its episode is `after` its last step."""
    offsets = np.arange(length + 1)[:, None]
    at = np.minimum(row + offsets, len(after) - 1)  # [L + 1, W]
    valid = offsets[:-1] < steps
    value = rows["value"][at, copy]
    last = row + steps - 1
    over = rows["ended"][last, copy]
    value[steps[over], over] = after[last[over], copy[over]]
    return Believed(
        reward=rows["reward"][at[:-1], copy] * valid,
        terminated=rows["terminated"][at[:-1], copy] & valid,
        valid=valid,
        taken=rows["taken"][at[:-1], copy],
        value=value,
        steps=steps,
    )
