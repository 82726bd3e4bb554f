import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.streams import Rows
from starling.errors import ConfigError
from starling.windows import Window, completed
from tests.replay_worlds import CountingWorld


@settings(deadline=None)
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
    carried: Rows | None = None
    found = []

    for length in lengths:
        unroll = world.unroll(length)
        serials = unroll.columns["obs"][..., 1].astype(np.int64)  # stand in for keys
        rows = Rows.of(unroll, serials)
        num_carried = 0 if carried is None else len(carried.numbers)
        rows = rows if carried is None else carried.then(rows)
        done = completed(window, rows.acted, rows.ended, rows.age, num_carried)
        carried = rows.tail(window.length)
        found += list(zip(done.copy, rows.numbers[done.row, done.copy], done.steps, strict=True))

    truth = world.windows(window, capacity=10**9)
    assert sorted(found) == sorted((*first, len(held.steps)) for first, held in truth.items())


@pytest.mark.parametrize("field", ["length", "period"])
def test_a_window_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"window.{field} must be >= 1, got 0"):
        Window(**{field: 0})
