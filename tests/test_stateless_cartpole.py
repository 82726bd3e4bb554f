"""CartPole without its speeds, beside the full one."""

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from actors.copies import EnvConfig
from actors.envs import make_copies
from starling.stateless_cartpole import StatelessCartPole


def test_it_is_cartpole_of_which_only_positions_are_shown() -> None:
    full, stateless = CartPoleVectorEnv(num_envs=4), StatelessCartPole(num_envs=4)
    rng = np.random.default_rng(0)

    seen, _ = full.reset(seed=3)
    shown, _ = stateless.reset(seed=3)

    np.testing.assert_array_equal(shown, seen[:, [0, 2]])
    ends = 0
    for _ in range(200):
        actions = rng.integers(2, size=4)
        seen, *rest, _ = full.step(actions)
        shown, *others, _ = stateless.step(actions)
        np.testing.assert_array_equal(shown, seen[:, [0, 2]])
        np.testing.assert_array_equal(rest, others)
        assert stateless.observation_space.contains(shown)
        ends += int(rest[1].sum())
    assert ends > 10


def test_it_is_found_by_its_name_and_stepped_as_a_vector() -> None:
    config = EnvConfig(id="starling.stateless_cartpole:StatelessCartPole", copies=3, time_limit=5)

    copies = make_copies(config)

    assert isinstance(copies.vector, StatelessCartPole)
    assert copies.spec.obs.shape == (2,)
    copies.reset([0, 1, 2])
    truncated = [copies.step(np.zeros(3, np.int64)).truncated.all() for _ in range(5)]
    assert truncated == [False, False, False, False, True]
