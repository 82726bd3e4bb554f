"""Whether the algorithms that learn from whole unrolls learn at all, with nothing between acting and learning."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, MultiDiscrete

from actors.copies import EnvConfig
from learner.config import OptimizerConfig
from starling.algorithms.a3c import A3c, A3cConfig
from starling.algorithms.async_q import AsyncQ, AsyncQConfig
from starling.algorithms.impala import Impala, ImpalaConfig
from starling.gridworld import FREE, NUM_CELLS, draw_policy, optimal
from starling.networks.forward import build_forward
from starling.types import Array
from tests.alone import Alone

GRID = EnvConfig(id="starling.gridworld:GridWorld", copies=16, kwargs={"random_start": True})
CARTPOLE = EnvConfig(id="CartPole-v1", copies=32, reward_scale=0.1)


class Blindfold(gymnasium.ObservationWrapper):
    """CartPole without its speeds: only who remembers can tell them."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: Array) -> Array:
        return observation[[0, 2]]


class Lock(gymnasium.Env[Array, Array]):
    """Shows a combination, and pays for each wheel that is set to it."""

    observation_space = MultiDiscrete([3, 4])
    action_space = MultiDiscrete([3, 4])

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[Array, dict[str, object]]:
        super().reset(seed=seed)
        self._shown = self.np_random.integers([3, 4])
        return self._shown, {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, object]]:
        return self._shown, float((action == self._shown).sum()), True, False, {}


def chosen(alone: Alone) -> Array:
    """Return the greedy action of every cell of the grid."""
    forward = build_forward(alone.acting, alone.spec)
    forward.load(alone.params())
    return alone.algorithm.greedy(forward(np.arange(NUM_CELLS)))


@pytest.mark.learns
@pytest.mark.parametrize("shared", [True, False])
def test_a3c_finds_a_best_way_from_every_cell(shared: bool) -> None:
    algorithm = A3c(A3cConfig(shared=shared, gae_lambda=0.95))
    alone = Alone(algorithm, GRID, 8, OptimizerConfig(learning_rate=5e-3, clip_norm=0.5))

    alone.learn(800)

    assert_best(chosen(alone))


@pytest.mark.learns
def test_asynchronous_q_finds_a_best_way_from_every_cell() -> None:
    algorithm = AsyncQ(AsyncQConfig(target_every=20))  # every cell is begun from, so few actions need be random
    alone = Alone(algorithm, GRID, 4, OptimizerConfig(learning_rate=2e-3))

    alone.learn(1000)

    assert_best(chosen(alone))


def assert_best(policy: Array) -> None:
    q, _ = optimal()
    lost = q.max(1) - q[np.arange(NUM_CELLS), policy]
    assert lost[FREE].max() < 1e-9, draw_policy(policy)


@pytest.mark.learns
@pytest.mark.parametrize(("shared", "memory"), [(True, 0), (False, 0), (True, 32)])
def test_a3c_solves_cartpole(shared: bool, memory: int) -> None:
    algorithm = A3c(A3cConfig(shared=shared, memory=memory, gae_lambda=0.95))
    alone = Alone(algorithm, CARTPOLE, 16, OptimizerConfig(learning_rate=1e-3, clip_norm=0.5), seed=1)

    assert alone.learn_until(475.0, updates=1000) >= 475.0


@pytest.mark.learns
@pytest.mark.parametrize(("shared", "memory"), [(True, 0), (False, 0), (True, 32)])
def test_impala_solves_cartpole(shared: bool, memory: int) -> None:
    algorithm = Impala(ImpalaConfig(shared=shared, memory=memory))
    alone = Alone(
        algorithm, replace(CARTPOLE, copies=64), 20, OptimizerConfig(learning_rate=2e-3, clip_norm=1.0), seed=1
    )

    assert alone.learn_until(475.0, updates=500, every=50) >= 475.0


@pytest.mark.learns
def test_a_memory_balances_a_pole_whose_speed_is_hidden() -> None:
    env = EnvConfig(id=f"{__name__}:Blindfold", copies=32, reward_scale=0.1)
    optimizer = OptimizerConfig(learning_rate=1e-3, clip_norm=0.5)
    without = Alone(A3c(A3cConfig(gae_lambda=0.95)), env, 16, optimizer)
    with_memory = Alone(A3c(A3cConfig(gae_lambda=0.95, memory=32)), env, 16, optimizer)

    assert without.learn_until(195.0, updates=500, every=250) < 100.0
    assert with_memory.learn_until(195.0, updates=1000) >= 195.0


@pytest.mark.learns
def test_a3c_sets_every_wheel_of_a_lock_at_once() -> None:
    env = EnvConfig(id=f"{__name__}:Lock", copies=32)
    alone = Alone(A3c(A3cConfig(hidden=(32,))), env, 4, OptimizerConfig(learning_rate=1e-2, clip_norm=0.5))

    assert alone.learn_until(2.0, updates=500) == 2.0
