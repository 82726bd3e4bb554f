"""Plain copies beside Gymnasium's own vector of the same environments."""

from functools import partial

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.plain import PlainCopies
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
