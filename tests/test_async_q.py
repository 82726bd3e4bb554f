"""Asynchronous n-step Q-learning against its definition, and how a worker's target follows."""

import numpy as np
import pytest
import torch

from starling.algorithms.async_q import AsyncQ, AsyncQConfig
from starling.algorithms.dqn import Dqn, DqnConfig
from starling.errors import ConfigError
from starling.networks.nets import LearnerNets
from starling.params import Params
from starling.spec import ArraySpec, Spec
from starling.types import Place
from tests.test_a3c import DISCOUNT, slow_return, unroll_of_states
from tests.test_dqn import SPEC, tables


def test_every_step_learns_from_the_rewards_to_come_and_then_from_the_target() -> None:
    nets, batch = tables(), unroll_of_states()
    algorithm = AsyncQ(AsyncQConfig(discount=DISCOUNT, huber_delta=0.0))

    algorithm.losses(nets, batch, None).groups["q"].backward()

    best = nets["target"].values.detach().numpy().max(1)
    gradient = np.zeros((6, 3))
    steps = batch.valid.nonzero().tolist()
    for t, e in steps:
        state, action = int(batch.obs[t, e]), int(batch.action[t, e])
        taken = float(nets["q"].values.detach()[state, action])
        gradient[state, action] -= (slow_return(batch, best, t, e) - taken) / len(steps)
    assert nets["q"].values.grad is not None
    np.testing.assert_allclose(nets["q"].values.grad.numpy(), gradient, rtol=1e-5, atol=1e-7)
    assert nets["target"].values.grad is None


def test_it_explores_as_dqn_does() -> None:
    place, outputs = Place(1, 2, 4), {"q": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
    algorithm, dqn = AsyncQ(AsyncQConfig()), Dqn(DqnConfig())

    explore = algorithm.explore(place)

    assert np.array_equal(explore, dqn.explore(place))
    ours = algorithm.act(outputs, explore, np.random.default_rng(1))
    assert np.array_equal(ours.action, dqn.act(outputs, explore, np.random.default_rng(1)).action)
    assert ours.taken is None


def test_the_target_is_a_copy_of_the_first_version_seen_after_its_turn() -> None:
    algorithm = AsyncQ(AsyncQConfig(target_every=10, hidden=()))
    generator = torch.Generator().manual_seed(0)
    nets = LearnerNets(algorithm.networks(SPEC), algorithm.targets(), SPEC, generator, torch.device("cpu"))
    state = torch.tensor([2])
    held = []

    since = 0
    for version in (3, 9, 14, 19, 20, 45):
        values = np.full(nets.layout.size, version / 2, np.float32)  # every Q is then the version: weight and bias
        nets.advance(Params(nets.layout, values), version, since)
        since = version
        held.append(float(nets.frozen("target", state)["q"][0, 0]))

    assert float(nets.frozen("q", state)["q"][0, 0]) == 45.0
    assert held[2:] == [14.0, 14.0, 20.0, 45.0]
    assert held[0] == held[1]
    assert abs(held[0]) < 2.0  # still what it began with


def test_several_actions_at_once_are_refused_in_one_sentence() -> None:
    spec = Spec(env="Two", obs=ArraySpec((3,), "float32"), action=ArraySpec((2,), "int64"), choices=(2, 3))

    with pytest.raises(ConfigError, match="algorithm async_q needs discrete actions; Two has several actions at once"):
        AsyncQ(AsyncQConfig()).networks(spec)


def test_a_target_that_never_follows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.target_every must be >= 1, got 0"):
        AsyncQConfig(target_every=0)
