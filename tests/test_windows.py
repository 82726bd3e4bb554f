import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starling.errors import ConfigError
from starling.windows import Window, completed, stacked
from tests.replay_worlds import CountingWorld


@given(
    seed=st.integers(0, 2**32),
    window=st.builds(Window, length=st.integers(4, 6), period=st.integers(1, 4), burn_in=st.integers(0, 3)),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    end_probability=st.sampled_from([0.0, 0.2, 0.7]),
    next_step=st.booleans(),
)
def test_however_a_stream_is_cut_into_unrolls_each_window_is_completed_once(
    seed: int, window: Window, lengths: list[int], end_probability: float, next_step: bool
) -> None:
    world = CountingWorld(np.random.default_rng(seed), end_probability=end_probability, next_step=next_step)
    rows = {name: np.empty((0, world.copies), np.int64) for name in ("serial", "acted", "ended", "age")}
    found = []

    for length in lengths:
        carried = {name: column[-window.length :] for name, column in rows.items()}
        columns = world.unroll(length).columns
        columns |= {"serial": columns["obs"][..., 1], "ended": columns["terminated"] | columns["truncated"]}
        rows = {name: np.concatenate([column, columns[name]]).astype(int) for name, column in carried.items()}
        acted, ended = rows["acted"] > 0, rows["ended"] > 0
        done = completed(window, acted, ended, rows["age"], len(carried["acted"]))
        found += list(zip(done.copy, rows["serial"][done.row, done.copy], done.steps, strict=True))

    truth = world.windows(window, capacity=10**9)
    assert sorted(found) == sorted((*first, len(held.steps)) for first, held in truth.items())


@pytest.mark.parametrize("field", ["length", "period"])
def test_a_window_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"window.{field} must be >= 1, got 0"):
        Window(**{field: 0})


def test_frames_become_stacks_that_share_them_whether_numpy_or_torch() -> None:
    frames = np.arange(7 * 2 * 3).reshape(7, 2, 3)  # [k - 1 + L + 1, n, ...]
    window = Window(length=4, every_obs=True, stack=3)

    stacks = stacked(frames, window)

    assert stacks.shape == (5, 2, 3, 3)
    assert np.shares_memory(stacks, frames)
    for step in range(5):
        np.testing.assert_array_equal(stacks[step], frames[step : step + 3].swapaxes(0, 1))
    np.testing.assert_array_equal(stacked(torch.from_numpy(frames), window).numpy(), stacks)


@pytest.mark.parametrize(("length", "frames"), [(1, 4), (5, 6)])
def test_the_ends_of_a_window_are_two_stacks(length: int, frames: int) -> None:
    served = np.arange(frames * 2).reshape(frames, 2)

    first, last = stacked(served, Window(length=length, stack=3))

    assert stacked(torch.from_numpy(served), Window(length=length, stack=3)).tolist() == [first.tolist(), last.tolist()]
    np.testing.assert_array_equal(first, served[:3].T)
    np.testing.assert_array_equal(last, served[-3:].T)
