"""Which windows over consecutive steps exist, and which of them an unroll completes.

One definition serves the shard (what may be sampled) and the actor (whose priority is known).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from starling.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """`length` consecutive steps of one stream, and the observation after the last of them.

    A window never crosses an episode's start; at an episode's end it is shorter. With `period` p
    it begins at every p-th step of an episode. `every_obs` False serves only the first
    observation and the one after the last step, which is all that an n-step transition needs.

    The first `burn_in` steps only warm a recurrent state up, unless the window begins with its episode: then there
    is nothing to warm up, and all of it is learned from. With `length` = `burn_in` + `period` every step of an
    episode is learned from once, and no window is left without a step to learn from.

    With `stack` k every observation is the last of k frames, the first frame of an episode standing for those before
    it. Frames are served once each: those of `every_obs` as `[k - 1 + length + 1]`; of the ends, those of the first
    stack and then those of the last one, `[2 k]`, or `[k + 1]` where the window is one step and they overlap.
    """

    length: int = 1
    period: int = 1
    every_obs: bool = False
    burn_in: int = 0
    stack: int = 1

    @property
    def by_age(self) -> bool:
        """Whether it matters how far into its episode a step is."""
        return self.period > 1 or self.burn_in > 0 or self.stack > 1

    def __post_init__(self) -> None:
        check(self.length >= 1, f"window.length must be >= 1, got {self.length}")
        check(self.period >= 1, f"window.period must be >= 1, got {self.period}")
        check(0 <= self.burn_in < self.length, f"window.burn_in must be in [0, window.length), got {self.burn_in}")
        check(self.stack >= 1, f"window.stack must be >= 1, got {self.stack}")


class Completed(NamedTuple):
    """Windows that became whole: `row` and `copy` of the first step, and how many `steps` each has."""

    row: NDArray[np.intp]  # [W]
    copy: NDArray[np.intp]  # [W]
    steps: NDArray[np.intp]  # [W], 1..length


def completed(
    window: Window,
    acted: NDArray[np.bool_],  # [R, E] whether the row is a real step
    ended: NDArray[np.bool_],  # [R, E] whether the step ended its episode
    age: NDArray[np.integer],  # [R, E] steps of this episode before this row
    carried: int,
) -> Completed:
    """Return the windows made whole by the rows after the first `carried` ones, in order of (row, copy).

    The first `carried` (at most `window.length`) rows were there before. A window is whole when its episode
    ended inside it, or when the row after its last step is there, since that row holds the last observation.
    """
    assert 0 <= carried <= min(len(acted), window.length), "a longer carry would complete windows twice"
    ends, still_open = ended & acted, acted.copy()
    still_open[:carried] &= ~_ends_later(ends[:carried])
    begins, _ = begun(window, still_open, ends, age)
    row, copy = np.nonzero(begins)
    stop = _whole_at(window, ends)
    return Completed(row, copy, np.minimum(stop[row, copy] - row + 1, window.length))


def begun(
    window: Window,
    still_open: NDArray[np.bool_],  # [R, E] real steps whose windows were not whole before
    ends: NDArray[np.bool_],  # [R, E] of these the ones that ended their episodes
    age: NDArray[np.integer] | None,  # [R, E], where windows go by it
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say of each row whether a window begins there that is whole now, and whether one may be later."""
    assert age is not None or not window.by_age, "these windows go by age"
    begins = still_open.copy()
    late = max(0, len(begins) - window.length)  # from here on only an episode's end makes a window whole
    begins[late:] &= _ends_later(ends[late:])
    left = still_open > begins
    if age is not None and window.period > 1:
        begins &= age % window.period == 0
    if age is not None and window.burn_in:
        steps = _whole_at(window, ends) - np.arange(len(ends))[:, None]
        begins &= (age == 0) | (steps >= window.burn_in)
    return begins, left


def _ends_later(ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say of each row whether an episode ends there or in a later one."""
    return np.logical_or.accumulate(ends[::-1], axis=0)[::-1]


def _whole_at(window: Window, ends: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Return of each row at which one a window that begins there is whole."""
    index = np.arange(len(ends))[:, None]
    stop = np.where(ends, index, len(ends) + window.length)
    stop = np.minimum.accumulate(stop[::-1], axis=0)[::-1]  # the row that ends this row's episode
    return np.minimum(stop, index + window.length)  # or the one that holds the last observation


def stacked(frames: Any, window: Window) -> Any:
    """Return frames as they were served, numpy array or tensor, as observations `[L + 1 or 2, n, stack, ...]`.

    No frame is copied: the stacks are views that share them.
    """
    stack = window.stack
    if stack == 1:
        return frames
    if not window.every_obs and window.length > 1:
        return frames.reshape(2, stack, *frames.shape[1:]).swapaxes(1, 2)
    if isinstance(frames, np.ndarray):
        return np.moveaxis(sliding_window_view(frames, stack, axis=0), -1, 2)
    return frames.unfold(0, stack, 1).movedim(-1, 2)
