"""The synchronous policy gradients learn, each by its own preset."""

from typing import Any

import pytest

from cluster.local import run_local
from cluster.report import Event, Outcome
from starling.errors import ConfigError
from starling.metrics import no_clock
from tests.test_local import config_of

BUDGETS = {
    "cartpole-policy-gradient": 2_000_000,
    "cartpole-reinforce": 1_000_000,
    "cartpole-reinforce-baseline": 1_000_000,
    "cartpole-actor-critic": 400_000,
    "cartpole-a2c": 400_000,
    "cartpole-ppo": 100_000,
    "pendulum-ppo": 400_000,
}
"""Steps within which a preset reaches its goal, several times what was seen; a broken one needs all that it has"""


def ignore(event: Event) -> None:
    """Nobody looks."""


def outcome(preset: str, **over: Any) -> Outcome:
    return run_local(config_of(preset, **over), ignore, clock=no_clock)


@pytest.mark.learns
@pytest.mark.parametrize("preset", BUDGETS)
def test_a_preset_reaches_its_goal(preset: str) -> None:
    ended = outcome(preset, seed=4)

    assert ended.reason == "goal"
    assert ended.env_steps < BUDGETS[preset]


@pytest.mark.learns
def test_only_a_policy_that_remembers_balances_a_pole_whose_speed_is_hidden() -> None:
    without = outcome("stateless-cartpole-ppo", seed=4, algorithm={"memory": 0}, goal={"total_steps": 150_000})
    remembering = outcome("stateless-cartpole-ppo", seed=4)

    assert remembering.reason == "goal"
    assert without.best_mean is not None
    assert without.best_mean < 150.0


def test_a_clip_is_annealed_only_where_something_is() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.anneal_clip must be false while learner\.anneal_env_steps is 0"):
        config_of("cartpole-ppo", algorithm={"anneal_clip": True})

    assert config_of("cartpole-ppo", algorithm={"anneal_clip": True}, learner={"anneal_env_steps": 10}).algorithm
