"""Plain copies beside Gymnasium's own vector of the same environments."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.plain import PlainCopies, QuickDiscrete
from tests.counting import Counting

SEEDS = [11, 22, 33]
FIRST = 5  # of its three actions


def test_steps_resets_and_infos_are_those_of_gymnasiums_vector() -> None:
    mine, theirs = (
        make([Counting] * len(SEEDS))
        for make in (PlainCopies, partial(SyncVectorEnv, copy=False, autoreset_mode=AutoresetMode.DISABLED))
    )
    for a, b in zip(mine.reset(seed=list(SEEDS)), theirs.reset(seed=list(SEEDS)), strict=True):
        np.testing.assert_equal(a, b)
    resets = 0

    for step in range(200):
        actions = FIRST + (np.arange(len(SEEDS)) + step) % 3
        own, expected = mine.step(actions), theirs.step(actions)
        np.testing.assert_equal(own, expected)
        ends = own[2] | own[3]
        if ends.any():
            resets += 1
            again = mine.reset(options={"reset_mask": ends}), theirs.reset(options={"reset_mask": ends})
            np.testing.assert_equal(*again)

    assert resets > 10


def test_what_a_step_returned_stays_but_for_the_observations() -> None:
    copies = PlainCopies([Counting] * len(SEEDS))
    copies.reset(seed=list(SEEDS))
    _, rewards, terminated, truncated, _ = copies.step(np.full(len(SEEDS), FIRST))
    kept = rewards.copy(), terminated.copy(), truncated.copy()

    for _ in range(20):
        copies.step(np.full(len(SEEDS), FIRST))
        copies.reset(seed=list(SEEDS))

    np.testing.assert_equal((rewards, terminated, truncated), kept)


@pytest.mark.parametrize("dtype", [np.int64, np.int8])
@pytest.mark.parametrize("number", [-1, 0, 4, 5, 7, 8, 2**40, 2**70, 5.0, np.float64(5), True, "5", None])
def test_a_space_that_knows_sooner_knows_the_same(number: Any, dtype: Any) -> None:
    quick, space = QuickDiscrete(3, start=FIRST, dtype=dtype), Discrete(3, start=FIRST, dtype=dtype)
    whole = isinstance(number, int) and abs(number) < 2**63
    fits = [kind(number) for kind in (np.int64, np.uint64, np.int8) if whole and abs(number) < 100 and number >= 0]

    for x in (number, np.array(number), np.array([FIRST]), *fits, *([np.int64(number)] if whole else [])):
        assert quick.contains(x) is bool(space.contains(x))


def test_the_largest_space_of_all_ends_where_its_type_does() -> None:
    largest = np.iinfo(np.int64).max

    assert QuickDiscrete(largest, start=1).contains(np.int64(largest))
    assert not QuickDiscrete(largest, start=0).contains(np.int64(largest))


def test_the_space_of_a_copy_stays_its_own_and_refuses_what_it_refused() -> None:
    copies = PlainCopies([Counting] * len(SEEDS))
    spaces = [env.unwrapped.action_space for env in copies.envs]

    assert {type(space) for space in spaces} == {QuickDiscrete}
    assert all(space == Discrete(3, start=FIRST) for space in spaces)
    copies.reset(seed=list(SEEDS))
    with pytest.raises(AssertionError, match="is no action of this environment"):
        copies.step(np.full(len(SEEDS), FIRST + 3))
