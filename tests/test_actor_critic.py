"""Each form of the policy gradient against its definition, step by step, and against the others."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from starling import distributions
from starling.algorithms.a3c import A3c, A3cConfig
from starling.algorithms.actor_critic import (
    A2cConfig,
    ActorCritic,
    ActorCriticConfig,
    PolicyGradientConfig,
    ReinforceConfig,
)
from starling.errors import ConfigError
from starling.losses import normalised, share_of
from starling.networks.nets import LearnerNets
from starling.types import Array, Batch, Place
from tests.kinds import KINDS, copies_of, networks_of, play
from tests.test_a3c import DISCOUNT, DISCRETE, Tables, slow_return, unroll_of_states

GROUP = "actor_critic"
FORMS: dict[str, A2cConfig] = {
    "whole": PolicyGradientConfig(discount=DISCOUNT, entropy_cost=0.05),
    "to_go": ReinforceConfig(discount=DISCOUNT, entropy_cost=0.05),
    "baseline": ReinforceConfig(discount=DISCOUNT, entropy_cost=0.05, value_cost=0.7, baseline=True),
    "one_step": ActorCriticConfig(discount=DISCOUNT, entropy_cost=0.05, value_cost=0.7),
    "n_step": A2cConfig(discount=DISCOUNT, entropy_cost=0.05, value_cost=0.7),
}


def states() -> Batch:
    """Return an unroll of episodes that end in either way, and say where they begin."""
    batch = unroll_of_states()
    begins = torch.cat([batch.first[:1], batch.terminated | batch.truncated | ~batch.valid])
    return replace(batch, first=begins)


def earned(batch: Batch, t: int, e: int) -> float:
    """Return what was earned from a step on, up to its episode's end or the unroll's."""
    total = float(batch.reward[t, e])
    if batch.terminated[t, e] or batch.truncated[t, e] or t + 1 == len(batch.reward):
        return total
    return total + DISCOUNT * earned(batch, t + 1, e)


def beginning(batch: Batch, t: int, e: int) -> int:
    """Return the row at which a step's episode begins, or the unroll's first."""
    while t and not batch.first[t, e]:
        t -= 1
    return t


def expected_after(batch: Batch, values: Array, t: int, e: int) -> float:
    """Return the value of what a step led to."""
    if batch.terminated[t, e]:
        return 0.0
    if batch.truncated[t, e]:
        at = batch.final_at.tolist().index(t * batch.reward.shape[1] + e)
        return float(values[int(batch.final_obs[at])])
    return float(values[int(batch.obs[t + 1, e])])


def turned_out(form: str, batch: Batch, values: Array, t: int, e: int) -> float:
    """Return what each form judges a step by, before any baseline."""
    if form == "whole":
        return earned(batch, beginning(batch, t, e), e)
    if form in ("to_go", "baseline"):
        return earned(batch, t, e)
    if form == "one_step":
        return float(batch.reward[t, e]) + DISCOUNT * expected_after(batch, values, t, e)
    return slow_return(batch, values, t, e)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_loss_and_its_gradient_are_their_definition(form: str, normalise: bool) -> None:
    nets, batch, config = Tables(), states(), replace(FORMS[form], normalise_advantages=normalise)

    loss = ActorCritic(config).losses(nets, batch, None).groups[GROUP]

    values = nets.values.detach().numpy()[:, 0]
    steps = batch.valid.nonzero().tolist()
    goals = {(t, e): turned_out(form, batch, values, t, e) for t, e in steps}
    judged = {(t, e): goals[t, e] - config.baseline * values[int(batch.obs[t, e])] for t, e in steps}
    if normalise:
        mean, deviation = np.mean(list(judged.values())), np.std(list(judged.values()))
        judged = {step: (advantage - mean) / deviation for step, advantage in judged.items()}
    expected = torch.zeros((), dtype=torch.float64)
    for t, e in steps:
        state, action = int(batch.obs[t, e]), int(batch.action[t, e])
        probabilities = nets.logits[state].softmax(0)
        expected = expected - probabilities[action].log() * judged[t, e]
        expected = expected + 0.05 * (probabilities * probabilities.log()).sum()
        if config.baseline:
            expected = expected + 0.7 * 0.5 * (goals[t, e] - nets.values[state, 0]) ** 2
    expected = expected / len(steps)
    torch.testing.assert_close(loss, expected)
    inputs = [nets.logits, nets.values]
    for actual, slow in zip(
        torch.autograd.grad(loss, inputs, allow_unused=True),
        torch.autograd.grad(expected, inputs, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(actual, slow)
    assert len(steps) == 38


@pytest.mark.parametrize("steps", [1, 7, 500, 1000])
@pytest.mark.parametrize("earned", [0.0, 0.1, 5.0, -93.7])
def test_steps_that_all_turned_out_alike_are_neither_good_nor_bad(earned: float, steps: int) -> None:
    judged = normalised(torch.full((steps,), earned), share_of(torch.ones(steps, dtype=torch.bool)))

    assert judged.abs().max() < 1e-2


class Steps:
    """A policy by state, as a table of logits; no value."""

    def __init__(self) -> None:
        self.logits = torch.tensor([[0.3, -0.2], [1.0, 0.5], [-0.7, 0.1]], dtype=torch.float64, requires_grad=True)

    def __getitem__(self, name: str) -> Any:
        return lambda obs: {"logits": self.logits[obs]}

    def frozen(self, name: str, obs: torch.Tensor) -> Any:
        return {"logits": self.logits[obs].detach()}


def walk(actions: tuple[int, ...]) -> Batch:
    """Return an unroll of one episode: action 0 goes on to another state, 1 ends it, and pays less where it is late.

    The rows behind the end are no steps. Whoever goes on to the last row is cut there.
    """
    at, rewards, obs, valid, over = 0, [], [0], [], []
    alive = True
    for t, action in enumerate(actions):
        valid.append(alive)
        rewards.append(((2.0 - t) if action else 1.5) if alive else 0.0)
        over.append(alive and action == 1)
        alive = alive and action == 0
        at = (at + 1) % 3
        obs.append(at)
    ends = torch.tensor(over)[:, None]
    return Batch(
        obs=torch.tensor(obs)[:, None],
        action=torch.tensor(actions)[:, None],
        reward=torch.tensor(rewards, dtype=torch.float64)[:, None],
        terminated=ends,
        truncated=torch.zeros_like(ends),
        valid=torch.tensor(valid)[:, None],
        weights=torch.ones(1),
        version=torch.ones(len(actions), 1),
        first=torch.cat([torch.tensor([[True]]), ends | ~torch.tensor(valid)[:, None]]),
        final_at=ends.flatten().nonzero().squeeze(1),
        final_obs=torch.zeros(int(ends.sum()), dtype=torch.long),
    )


@pytest.mark.parametrize("config", [PolicyGradientConfig, ReinforceConfig])
def test_the_expected_gradient_is_that_of_what_an_episode_earns_in_the_rows_that_are_left_to_it(
    config: type[A2cConfig],
) -> None:
    nets = Steps()
    algorithm = ActorCritic(config(discount=1.0, entropy_cost=0.0))
    expected_loss = torch.zeros((), dtype=torch.float64)
    earnings = torch.zeros((), dtype=torch.float64)

    for actions in product((0, 1), repeat=4):
        batch = walk(actions)
        taken = nets.logits[batch.obs[:-1, 0]].log_softmax(1)[torch.arange(4), batch.action[:, 0]]
        probability = taken.sum().exp()
        sum_over_steps = algorithm.losses(nets, batch, None).groups[GROUP] * batch.valid.sum()
        expected_loss = expected_loss + probability.detach() * sum_over_steps
        earnings = earnings + probability * batch.reward.sum()

    (actual,) = torch.autograd.grad(expected_loss, [nets.logits])
    (slow,) = torch.autograd.grad(-earnings, [nets.logits])
    torch.testing.assert_close(actual, slow)


def test_one_step_actor_critic_is_a2c_over_unrolls_of_one_step() -> None:
    nets, batch = Tables(), states()

    one_step = ActorCritic(FORMS["one_step"]).losses(nets, batch, None).groups[GROUP]

    total = torch.zeros((), dtype=torch.float64)
    copies = batch.reward.shape[1]
    for t in range(len(batch.reward)):
        here = batch.final_at // copies == t
        row = slice(t, t + 1)
        alone = replace(
            batch,
            **{name: getattr(batch, name)[row] for name in ("action", "reward", "terminated", "truncated", "valid")},
            obs=batch.obs[t : t + 2],
            first=batch.first[t : t + 2],
            final_at=batch.final_at[here] - t * copies,
            final_obs=batch.final_obs[here],
        )
        total = total + ActorCritic(FORMS["n_step"]).losses(nets, alone, None).groups[GROUP] * alone.valid.sum()
    torch.testing.assert_close(one_step, total / batch.valid.sum())


def test_reinforce_with_a_baseline_is_a2c_where_nothing_is_cut() -> None:
    nets, batch = Tables(), states()
    batch = replace(batch, terminated=batch.terminated | batch.truncated, truncated=torch.zeros_like(batch.truncated))
    over = batch.terminated.clone()
    over[-1] = True
    ends = over.flatten().nonzero().squeeze(1)
    batch = replace(batch, terminated=over, final_at=ends, final_obs=torch.zeros(len(ends), dtype=torch.long))

    reinforce, a2c = (ActorCritic(FORMS[form]).losses(nets, batch, None) for form in ("baseline", "n_step"))

    torch.testing.assert_close(reinforce.groups, a2c.groups)
    torch.testing.assert_close(reinforce.metrics, a2c.metrics)


@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a2c_minimises_what_a_worker_of_a3c_does(kind: str, shared: bool, memory: int) -> None:
    copies = copies_of(kind)
    a2c = ActorCritic(A2cConfig(gae_lambda=0.9, shared=shared, memory=memory))
    a3c = A3c(A3cConfig(gae_lambda=0.9, shared=shared, memory=memory))
    nets = networks_of(a2c, copies)
    batch = play(a2c, copies, nets)

    assert a2c.networks(copies.spec) == a3c.networks(copies.spec)
    torch.testing.assert_close(a2c.losses(nets, batch, None).groups[GROUP], a3c.losses(nets, batch, None).groups["a3c"])


def seen_step_by_step(nets: LearnerNets, name: str, batch: Batch) -> tuple[list[Any], list[torch.Tensor]]:
    """Return a network's outputs of every row, one after the other, and the states after them."""
    state = batch.starts[name]
    outputs, states = [], []
    for t in range(len(batch.obs)):
        state = state * ~batch.first[t][:, None, None]
        output, after = nets[name](batch.obs[t : t + 1], state)
        state = after[0]
        outputs.append({head: values[0] for head, values in output.items()})
        states.append(state)
    return outputs, states


@pytest.mark.parametrize("kind", KINDS)
def test_what_remembers_learns_as_if_it_were_unrolled_step_by_step(kind: str) -> None:
    copies = copies_of(kind)
    algorithm = ActorCritic(A2cConfig(discount=DISCOUNT, memory=4, entropy_cost=0.02))
    nets = networks_of(algorithm, copies)
    batch = play(algorithm, copies, nets)

    loss = algorithm.losses(nets, batch, None).groups[GROUP]

    decided, _ = seen_step_by_step(nets, "policy", batch)
    valued, remembered = seen_step_by_step(nets, "value", batch)
    length, num_copies = batch.reward.shape
    after: Any = [valued[t + 1]["value"][:, 0].detach().clone() for t in range(length)]
    for at, obs in zip(batch.final_at.tolist(), batch.final_obs, strict=True):
        t, e = divmod(at, num_copies)
        last, _ = nets["value"](obs[None, None], remembered[t][e : e + 1].detach())
        after[t][e] = last["value"].item()
    total, target = torch.zeros(()), after[-1]
    for t in reversed(range(length)):
        cut = batch.terminated[t] | batch.truncated[t]
        then = torch.where(cut, after[t], target) * ~batch.terminated[t]
        target = batch.reward[t] + DISCOUNT * then
        value = valued[t]["value"][:, 0]
        choice = decided[t] | {name: mask[t] for name, mask in batch.extras.items()}
        log_pi = distributions.log_prob(choice, batch.action[t])
        lost = -log_pi * (target - value.detach()) + 0.5 * 0.5 * (target - value) ** 2
        total = total + ((lost - 0.02 * distributions.entropy(choice)) * batch.valid[t]).sum()
    expected = total / batch.valid.sum()
    torch.testing.assert_close(loss, expected)
    parameters = nets.parameters("policy", "value")
    for actual, slow in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(actual, slow, rtol=1e-4, atol=1e-6)
    assert batch.truncated.any()
    assert batch.terminated.any()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_only_resets_is_never_learned_from(form: str) -> None:
    nets, batch = Tables(), states()
    algorithm = ActorCritic(replace(FORMS[form], normalise_advantages=True))

    before = algorithm.losses(nets, batch, None).groups[GROUP]
    idle = ~batch.valid
    batch.reward[idle] = 1e3
    batch.action[idle] = 2 - batch.action[idle]
    batch.obs[:-1][idle] = 5 - batch.obs[:-1][idle]
    after = algorithm.losses(nets, batch, None).groups[GROUP]

    assert idle.any()
    torch.testing.assert_close(before, after)


def test_without_a_baseline_there_is_no_value() -> None:
    plain, critic = ActorCritic(ReinforceConfig()), ActorCritic(ReinforceConfig(baseline=True))

    assert set(plain.networks(DISCRETE)) == set(plain.groups()[GROUP].networks) == {"policy"}
    assert set(critic.networks(DISCRETE)) == set(critic.groups()[GROUP].networks) == {"policy", "value"}
    assert "value" not in plain.losses(Tables(), states(), None).metrics


def test_actors_run_the_value_only_if_it_remembers() -> None:
    assert set(ActorCritic(A2cConfig()).acting(DISCRETE)) == {"policy"}
    assert set(ActorCritic(A2cConfig(memory=4)).acting(DISCRETE)) == {"policy", "value"}
    assert set(ActorCritic(A2cConfig(memory=4, shared=True)).acting(DISCRETE)) == {"policy"}


def test_only_the_policy_itself_explores() -> None:
    algorithm = ActorCritic(A2cConfig())

    assert algorithm.greedy({"logits": np.array([[0.0, 3.0, 1.0]], np.float32)}).tolist() == [1]
    assert not algorithm.explore(Place(1, 2, 4)).any()
    assert algorithm.window is None


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"discount": 1.1}, "algorithm.discount must be in [0, 1], got 1.1"),
        ({"returns": "all"}, "algorithm.returns must be one of whole, to_go, bootstrapped, got 'all'"),
        ({"returns": "to_go", "gae_lambda": 0.9}, "algorithm.gae_lambda must be 1 for returns that are not"),
        ({"baseline": False}, "algorithm.baseline must be true for bootstrapped returns, got false"),
        ({"returns": "whole"}, "algorithm.baseline must be false for whole returns"),
        ({"returns": "to_go", "baseline": False, "shared": True}, "algorithm.shared must be false without a baseline"),
        ({"memory": -1}, "algorithm.memory must be >= 0, got -1"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        A2cConfig(**settings)

    assert str(caught.value).startswith(complaint)
