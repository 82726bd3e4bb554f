"""PPO: its loss where the policy is the one that acted, its clips, and when an update ends."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from starling import distributions
from starling.algorithms.actor_critic import A2cConfig, ActorCritic
from starling.algorithms.ppo import Ppo, PpoConfig, clipped_error, clipped_gain
from starling.errors import ConfigError
from starling.networks.nets import LearnerNets
from starling.types import Batch, Losses, Updating
from tests.kinds import KINDS, copies_of, networks_of, play, play_centrally
from tests.test_a3c import DISCRETE
from tests.test_actor_critic import seen_step_by_step

TOLERANCE = 1e-5  # of a ratio: numpy acts, torch learns, both in float32


class Still:
    """Optimizers that write down what they are given, and move nothing."""

    def __init__(self, finite: bool = True) -> None:
        self.losses: list[torch.Tensor] = []
        self._finite = finite

    def step(self, losses: Mapping[str, Any]) -> bool:
        (loss,) = losses.values()
        self.losses.append(loss)
        return self._finite


class Descent(Still):
    """Optimizers that follow the gradient."""

    def __init__(self, nets: LearnerNets, rate: float) -> None:
        super().__init__()
        self._parameters = nets.parameters("policy", "value")
        self._rate = rate

    def step(self, losses: Mapping[str, Any]) -> bool:
        super().step(losses)
        gradients = torch.autograd.grad(self.losses[-1], self._parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter -= self._rate * gradient
        return True


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def played(kind: str = "discrete", **settings: Any) -> tuple[Ppo, LearnerNets, Batch]:
    algorithm, copies = Ppo(PpoConfig(**settings)), copies_of(kind)
    nets = networks_of(algorithm, copies)
    return algorithm, nets, play(algorithm, copies, nets)


def updated(algorithm: Ppo, nets: LearnerNets, batch: Batch, optimizers: Still) -> Losses:
    losses = algorithm.update(nets, optimizers, batch, generator())
    assert losses is not None
    return losses


def mu_off_by(batch: Batch, factor: float) -> Batch:
    """Return a batch whose ratios are `factor` times what they were."""
    return replace(batch, extras={**batch.extras, "log_mu": batch.extras["log_mu"] - np.log(factor)})


def gradient_of(nets: LearnerNets, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(
        torch.autograd.grad(loss, nets.parameters("policy", "value"), retain_graph=True, materialize_grads=True)
    )


@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("central", [False, True])
def test_the_first_ratios_are_one(kind: str, memory: int, central: bool) -> None:
    algorithm, copies = Ppo(PpoConfig(memory=memory, clip=TOLERANCE)), copies_of(kind)
    nets = networks_of(algorithm, copies)
    groups = [copies_of(kind, 2) for _ in range(3)]
    batch = play_centrally(algorithm, groups, nets) if central else play(algorithm, copies, nets)

    losses = updated(algorithm, nets, batch, Still())

    assert losses.metrics["clipped"] == 0.0
    assert losses.metrics["kl"] < TOLERANCE
    assert batch.extras["log_mu"].std() > 0.1


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_one_part_of_one_epoch_moves_as_a2c_does(kind: str, memory: int, normalise: bool) -> None:
    alike: dict[str, Any] = {"memory": memory, "entropy_cost": 0.02, "normalise_advantages": normalise}
    algorithm, nets, batch = played(kind, epochs=1, minibatches=1, gae_lambda=0.9, **alike)
    optimizers = Still()

    updated(algorithm, nets, batch, optimizers)

    a2c = ActorCritic(A2cConfig(gae_lambda=0.9, **alike)).losses(nets, batch, None).groups["actor_critic"]
    for actual, expected in zip(gradient_of(nets, optimizers.losses[0]), gradient_of(nets, a2c), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_the_loss_of_a_batch_is_that_of_its_one_part() -> None:
    algorithm, nets, batch = played(epochs=1, minibatches=1)
    optimizers = Still()

    updated(algorithm, nets, batch, optimizers)

    torch.testing.assert_close(algorithm.losses(nets, batch, generator()).groups["ppo"], optimizers.losses[0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "learned"),
    [
        (1.0, 1.0, True),
        (1.15, 1.0, True),
        (1.25, 1.0, False),  # likelier already
        (0.5, 1.0, True),  # went the wrong way: comes back from anywhere
        (0.85, -1.0, True),
        (0.75, -1.0, False),
        (1.5, -1.0, True),
    ],
)
def test_nothing_is_gained_beyond_the_clip(ratio: float, advantage: float, learned: bool) -> None:
    at = torch.tensor(ratio, requires_grad=True)

    gain = clipped_gain(at, torch.tensor(advantage), 0.2)

    (slope,) = torch.autograd.grad(gain, at)
    assert slope == (advantage if learned else 0.0)
    assert gain.item() == pytest.approx(min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))


def test_a_step_whose_action_is_likelier_already_moves_no_policy() -> None:
    algorithm, nets, batch = played(normalise_advantages=False, value_cost=0.0, clip=0.2)
    batch.reward[:] = 50.0  # every advantage is positive

    def gradient(factor: float) -> float:
        loss = algorithm.losses(nets, mu_off_by(batch, factor), generator()).groups["ppo"]
        return max(float(part.abs().max()) for part in gradient_of(nets, loss))

    assert gradient(1.19) > 0.0
    assert gradient(1.21) == 0.0


@pytest.mark.parametrize(("progress", "within"), [(0.0, True), (0.4, True), (0.6, False), (1.0, False)])
def test_the_clip_falls_to_nothing_as_annealing_ends(progress: float, within: bool) -> None:
    algorithm, nets, batch = played(clip=0.2, anneal_clip=True)
    steady = Ppo(replace(algorithm.config, anneal_clip=False))
    off = replace(mu_off_by(batch, 1.1), progress=progress)

    clipped = algorithm.losses(nets, off, generator()).metrics["clipped"]

    assert clipped == (0.0 if within else 1.0)
    assert steady.losses(nets, off, generator()).metrics["clipped"] == 0.0


def test_a_clipped_value_is_as_wrong_as_it_is_or_as_it_would_be_near_what_it_was() -> None:
    rng = np.random.default_rng(0)
    value, before, target = rng.normal(size=(3, 200))

    actual = clipped_error(torch.tensor(value), torch.tensor(before), torch.tensor(target), 0.3)

    for i in range(200):
        near = min(max(value[i], before[i] - 0.3), before[i] + 0.3)
        assert actual[i].item() == pytest.approx(max((value[i] - target[i]) ** 2, (near - target[i]) ** 2))
    free = clipped_error(torch.tensor(value), torch.tensor(before), torch.tensor(target), 0.0)
    torch.testing.assert_close(free, torch.tensor((value - target) ** 2))


def test_an_update_takes_as_many_steps_as_it_is_told() -> None:
    algorithm, nets, batch = played(epochs=3, minibatches=5)
    optimizers = Descent(nets, 1e-3)

    losses = updated(algorithm, nets, batch, optimizers)

    assert len(optimizers.losses) == losses.metrics["minibatches"] == 15


def test_an_update_ends_before_the_part_for_which_the_policy_went_too_far() -> None:
    algorithm, nets, batch = played(epochs=20, minibatches=2, target_kl=0.02)
    optimizers = Descent(nets, 0.03)

    losses = updated(algorithm, nets, batch, optimizers)

    assert 1 < len(optimizers.losses) < 40
    assert losses.metrics["minibatches"] == len(optimizers.losses)
    assert losses.metrics["kl"] <= 0.02
    assert algorithm.losses(nets, batch, generator()).metrics["kl"] > 0.01


def test_the_distance_is_that_of_the_policies_seen_by_what_was_done() -> None:
    algorithm, nets, batch = played()

    kl = algorithm.losses(nets, mu_off_by(batch, 1.3), generator()).metrics["kl"]

    assert kl.item() == pytest.approx(0.3 - np.log(1.3), abs=1e-4)


@pytest.mark.parametrize("memory", [0, 4])
def test_a_row_that_only_resets_is_never_learned_from(memory: int) -> None:
    algorithm, nets, batch = played(memory=memory, epochs=1, minibatches=2)
    # as a vector that resets in a step of its own would have it: behind an end, and no transition
    ends = (batch.terminated | batch.truncated)[:-1] & ~(batch.terminated | batch.truncated)[1:]
    idle = torch.cat([torch.zeros_like(ends[:1]), ends])
    batch = replace(batch, valid=~idle, first=torch.cat([batch.first[:1], batch.first[1:] | idle]))
    before, after = Still(), Still()

    updated(algorithm, nets, batch, before)
    batch.reward[idle] = 1e3
    batch.obs[:-1][idle] = 7.0
    batch.action[idle] = 0
    batch.extras["log_mu"][idle] = -9.0
    updated(algorithm, nets, batch, after)

    assert idle.any()
    torch.testing.assert_close(before.losses, after.losses)


@pytest.mark.parametrize("kind", KINDS)
def test_what_remembers_learns_as_if_it_were_unrolled_step_by_step(kind: str) -> None:
    settings: dict[str, Any] = {"memory": 4, "epochs": 1, "normalise_advantages": False, "gae_lambda": 1.0}
    algorithm, nets, batch = played(kind, minibatches=3, clip=0.1, entropy_cost=0.02, **settings)
    batch = mu_off_by(batch, 1.05)
    optimizers = Still()

    updated(algorithm, nets, batch, optimizers)

    decided, _ = seen_step_by_step(nets, "policy", batch)
    valued, _ = seen_step_by_step(nets, "value", batch)
    a2c = ActorCritic(A2cConfig(memory=4, value_cost=2.0, entropy_cost=0.0)).losses(nets, batch, None)
    value_loss = a2c.metrics["value"]  # compared with its definition by A2C's own test
    masks = [{"mask": mask} for mask in batch.extras["mask"]] if "mask" in batch.extras else [{}] * len(batch.action)
    choices = [output | mask for output, mask in zip(decided, masks, strict=False)]
    log_pi = torch.stack([distributions.log_prob(c, a) for c, a in zip(choices, batch.action, strict=True)])
    ratio = (log_pi - batch.extras["log_mu"]).exp()
    bonus = torch.stack([distributions.entropy(choice) for choice in choices]).mean()
    value = torch.stack([output["value"][:, 0] for output in valued])
    advantage = advantages(batch, value, nets)
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage).mean()
    expected = -gain + 0.5 * value_loss - 0.02 * bonus
    torch.testing.assert_close(torch.stack(optimizers.losses).mean(), expected, rtol=1e-4, atol=1e-5)
    assert len(optimizers.losses) == 3
    assert batch.valid.all()


def advantages(batch: Batch, value: torch.Tensor, nets: LearnerNets) -> torch.Tensor:
    """Return by recursion what was earned, and is expected where that ends, less what had been expected."""
    _, remembered = seen_step_by_step(nets, "value", batch)
    length, copies = batch.reward.shape
    target = value[-1].clone()
    rows = []
    for t in reversed(range(length)):
        for e in range(copies):
            if batch.truncated[t, e]:
                obs = batch.final_obs[batch.final_at.tolist().index(t * copies + e)]
                last, _ = nets["value"](obs[None, None], remembered[t][e : e + 1])
                target[e] = last["value"].item()
        target = batch.reward[t] + 0.99 * target * ~batch.terminated[t]
        rows.append(target - value[t])
    return torch.stack(rows[::-1]).detach()


@pytest.mark.parametrize("shared", [False, True])
def test_returns_in_another_unit_change_nothing_once_it_is_known(shared: bool) -> None:
    settings: dict[str, Any] = {"shared": shared, "normalise_advantages": False}
    algorithm, nets, batch = played(normalise_returns=True, **settings)
    plain = Ppo(PpoConfig(**settings))
    critic = "policy" if shared else "value"
    expected = plain.losses(nets, batch, generator()).groups["ppo"]

    nets.observe(critic, "returns", torch.tensor([[-1000.0], [1000.0]]))
    in_other_units = replace(batch, reward=1000.0 * batch.reward)

    actual = algorithm.losses(nets, in_other_units, generator()).groups["ppo"]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_spread_of_returns_is_observed_behind_an_update() -> None:
    algorithm, nets, batch = played(normalise_returns=True, gae_lambda=0.0, discount=0.0)
    batch.valid[3] = False
    batch.reward[3] = 1e3
    optimizers = Still()

    updated(algorithm, nets, batch, optimizers)

    deviation = nets.frozen("value", batch.obs[0])["returns"]
    torch.testing.assert_close(deviation[0, 0], batch.reward[batch.valid].std(correction=0))
    untouched = Ppo(PpoConfig(gae_lambda=0.0, discount=0.0))
    again = Still()
    updated(untouched, nets, batch, again)
    torch.testing.assert_close(again.losses, optimizers.losses)


@pytest.mark.parametrize("rows", [1, 12])
def test_what_is_not_finite_is_not_among_the_returns_that_are_observed(rows: int) -> None:
    algorithm, nets, batch = played(normalise_returns=True, epochs=1, minibatches=72, gae_lambda=0.0)
    batch.reward[:rows] = torch.nan  # of a part of the batch, or of all of it
    before = nets.flat.clone()

    class Refusing(Still):
        def step(self, losses: Mapping[str, Any]) -> bool:
            return super().step(losses) and bool(self.losses[-1].isfinite())

    losses = algorithm.update(nets, Refusing(), batch, generator())

    assert (losses is None) == (rows == 12)
    assert torch.equal(nets.flat, before)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_action_moves_every_parameter(kind: str, memory: int, shared: bool) -> None:
    algorithm, nets, batch = played(kind, memory=memory, shared=shared)

    loss = algorithm.losses(nets, batch, generator()).groups["ppo"]
    networks = algorithm.groups()["ppo"].networks
    loss.backward(inputs=nets.parameters(*networks))

    assert networks == tuple(algorithm.networks(copies_of(kind).spec))
    for name, span, _ in nets.layout.spans():
        assert nets.gradient[span].any(), name


def test_an_update_that_is_finite_nowhere_says_so() -> None:
    algorithm, nets, batch = played()

    assert algorithm.update(nets, Still(finite=False), batch, generator()) is None


def test_it_makes_its_own_updates_and_actors_need_no_value() -> None:
    algorithm = Ppo(PpoConfig())

    assert isinstance(algorithm, Updating)
    assert set(algorithm.acting(DISCRETE)) == {"policy"}
    assert set(Ppo(PpoConfig(memory=4)).acting(DISCRETE)) == {"policy", "value"}
    assert algorithm.window is None


@pytest.mark.parametrize(
    ("knob", "value", "rule"),
    [("clip", 0.0, "> 0"), ("epochs", 0, ">= 1"), ("minibatches", 0, ">= 1"), ("target_kl", -1.0, ">= 0")],
)
def test_a_knob_out_of_range_is_named(knob: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PpoConfig(**{knob: value})  # type: ignore[arg-type]

    assert str(caught.value) == f"algorithm.{knob} must be {rule}, got {value}"
