"""IMPALA's loss against its definition, against A3C's where both must agree, and step by step with a memory."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from actors.copies import Copies, EnvConfig
from actors.rollout import Rollout
from starling.algorithms.a3c import A3c, A3cConfig
from starling.algorithms.impala import Impala, ImpalaConfig
from starling.batches import batch_of
from starling.distributions import log_prob, mask_in
from starling.errors import ConfigError
from starling.metrics import Meter, no_clock
from starling.networks import Mlp
from starling.networks.forward import build_forward
from starling.networks.nets import LearnerNets
from starling.returns import vtrace
from starling.sight import see
from starling.spec import Spec
from starling.types import Batch, Place, Unroll
from tests.counting import CountingVector
from tests.gates import GatesVector
from tests.test_a3c import BOX, DISCOUNT, DISCRETE, SEVERAL, Tables, unroll_of_states
from tests.test_envs import SEEDS

CPU = torch.device("cpu")


def off_policy(batch: Batch) -> Batch:
    """Return the same steps, taken by somebody who gave the actions other probabilities."""
    log_mu = torch.log(torch.tensor(np.random.default_rng(5).uniform(0.05, 0.95, batch.reward.shape)))
    return replace(batch, extras={"log_mu": log_mu})


def test_the_loss_and_its_gradient_are_their_definition() -> None:
    nets, batch = Tables(), off_policy(unroll_of_states())
    config = ImpalaConfig(
        discount=DISCOUNT, rho_bar=1.3, c_bar=0.8, pg_rho_bar=1.1, value_cost=0.7, entropy_cost=0.05, shared=True
    )

    losses = Impala(config).losses(nets, batch, None)

    values = nets.values.detach()[:, 0]
    after = values[batch.obs[1:]]
    after.view(-1)[batch.final_at] = values[batch.final_obs]
    log_pi = nets.logits.log_softmax(-1)[batch.obs[:-1]].gather(-1, batch.action[..., None])[..., 0]
    targets, advantages = vtrace(
        (log_pi.detach() - batch.extras["log_mu"]).exp(),
        batch.reward,
        values[batch.obs[:-1]],
        after,
        DISCOUNT * ~batch.terminated,
        batch.terminated | batch.truncated,
        rho_bar=1.3,
        c_bar=0.8,
        pg_rho_bar=1.1,
    )
    steps = batch.valid.nonzero().tolist()
    expected = torch.zeros((), dtype=torch.float64)
    for t, e in steps:
        probabilities = nets.logits[int(batch.obs[t, e])].softmax(0)
        expected = expected - probabilities[int(batch.action[t, e])].log() * advantages[t, e]
        expected = expected + 0.7 * 0.5 * (targets[t, e] - nets.values[int(batch.obs[t, e]), 0]) ** 2
        expected = expected + 0.05 * (probabilities * probabilities.log()).sum()
    expected = expected / len(steps)
    torch.testing.assert_close(losses.groups["impala"], expected)
    inputs = [nets.logits, nets.values]
    for actual, slow in zip(
        torch.autograd.grad(losses.groups["impala"], inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(actual, slow)
    ratios = (log_pi.detach() - batch.extras["log_mu"]).exp()[batch.valid]
    assert losses.metrics["rho"] == pytest.approx(float(ratios.mean()))
    assert losses.metrics["clipped"] == pytest.approx(float((ratios > 1.3).double().mean()))


@pytest.mark.parametrize("lam", [1.0, 0.9, 0.0])
def test_on_policy_it_is_a3c(lam: float) -> None:
    nets, batch = Tables(), unroll_of_states()
    log_pi = log_prob({"logits": nets.logits[batch.obs[:-1]]}, batch.action).detach()

    ours = Impala(ImpalaConfig(discount=DISCOUNT, lam=lam, shared=True)).losses(
        nets, replace(batch, extras={"log_mu": log_pi}), None
    )
    theirs = A3c(A3cConfig(discount=DISCOUNT, gae_lambda=lam, shared=True)).losses(nets, batch, None)

    torch.testing.assert_close(ours.groups["impala"], theirs.groups["a3c"])
    inputs = [nets.logits, nets.values]
    for one, other in zip(
        torch.autograd.grad(ours.groups["impala"], inputs),
        torch.autograd.grad(theirs.groups["a3c"], inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    for name in ("policy", "value", "entropy"):
        torch.testing.assert_close(ours.metrics[name], theirs.metrics[name])
    assert ours.metrics["rho"] == pytest.approx(1.0)


def test_an_unroll_without_a_step_moves_nothing() -> None:
    nets, batch = Tables(), off_policy(unroll_of_states())
    batch.valid[:] = False

    loss = Impala(ImpalaConfig(shared=True)).losses(nets, batch, None).groups["impala"]

    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, [nets.logits, nets.values]))


def nets_of(algorithm: Impala, spec: Spec) -> LearnerNets:
    return LearnerNets(algorithm.networks(spec), {}, spec, torch.Generator().manual_seed(0), CPU)


def played(copies: Copies, algorithm: Impala, nets: LearnerNets, lengths: list[int]) -> list[Unroll]:
    """Return unrolls of these lengths, one behind the other, played by the networks' own policy."""
    acting = algorithm.acting(copies.spec)
    forward = build_forward(acting, copies.spec)
    place = Place(0, 1, copies.num_copies)
    rollout = Rollout(copies, algorithm, forward, place, np.random.SeedSequence(0))
    rollout.load(nets.params(sum(name.startswith(tuple(f"{n}." for n in acting)) for name, _ in nets.layout.entries)))
    return [rollout.collect(length, 1, Meter(no_clock)) for length in lengths]


def copies_of(env: str, autoreset: AutoresetMode) -> Copies:
    if env == "gates":
        return Copies(GatesVector(3, SEEDS, autoreset), EnvConfig(id="gates", copies=3, action_mask="info"))
    return Copies(CountingVector(3, SEEDS, autoreset), EnvConfig(id="counting", copies=3))


@pytest.mark.parametrize("env", ["counting", "gates"])
@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_steps_of_the_policy_itself_have_a_ratio_of_one(autoreset: AutoresetMode, memory: int, env: str) -> None:
    copies = copies_of(env, autoreset)
    algorithm = Impala(ImpalaConfig(hidden=(8,), memory=memory))
    nets = nets_of(algorithm, copies.spec)

    for unroll in played(copies, algorithm, nets, [7, 30]):
        batch = batch_of([unroll], CPU)
        rows = {head: output[:-1] for head, output in see(nets, "policy", batch).rows.items()} | mask_in(batch.extras)
        log_pi = log_prob(rows, batch.action).detach()

        torch.testing.assert_close(log_pi[batch.valid], batch.extras["log_mu"][batch.valid], rtol=1e-4, atol=1e-5)
        metrics = algorithm.losses(nets, batch, None).metrics
        assert metrics["rho"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_with_a_memory_the_loss_is_that_of_a_network_unrolled_step_by_step(shared: bool) -> None:
    copies = copies_of("counting", AutoresetMode.NEXT_STEP)
    config = ImpalaConfig(hidden=(8,), memory=5, shared=shared, discount=DISCOUNT, lam=0.9)
    algorithm = Impala(config)
    nets = nets_of(algorithm, copies.spec)
    _, unroll = played(copies, algorithm, nets, [5, 24])  # the second one begins in the middle of episodes
    batch = batch_of([unroll], CPU)
    log_mu = batch.extras["log_mu"] + 0.3 * torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    batch = replace(batch, extras={"log_mu": log_mu})

    loss = algorithm.losses(nets, batch, None).groups["impala"]
    networks = algorithm.groups()["impala"].networks
    loss.backward(inputs=nets.parameters(*networks))
    gradient = nets.gradient.clone()

    expected = slow_recurrent_loss(nets, batch, config)
    nets.gradient.zero_()
    expected.backward(inputs=nets.parameters(*networks))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, nets.gradient, rtol=1e-3, atol=1e-5)
    assert 3 < len(unroll.final_at) < 24


def slow_recurrent_loss(nets: LearnerNets, batch: Batch, config: ImpalaConfig) -> torch.Tensor:
    """Return the loss with each copy played alone, a row at a time, its state set to 0 where an episode begins."""
    critic = "policy" if config.shared else "value"
    terms = []
    for e in range(batch.reward.shape[1]):
        states = {name: batch.starts[name][e : e + 1] for name in dict.fromkeys(("policy", critic))}
        heads: list[dict[str, Any]] = []
        ends: dict[int, torch.Tensor] = {}
        for t in range(len(batch.obs)):
            said: dict[str, Any] = {}
            for name, state in states.items():
                if batch.first[t, e]:
                    state = torch.zeros_like(state)
                outputs, after = nets[name](batch.obs[t, e][None, None], state)
                said |= {head: output[0, 0] for head, output in outputs.items()}
                states[name] = after[0]
            heads.append(said)
            at = (batch.final_at == t * batch.reward.shape[1] + e).nonzero()
            if len(at):
                final, _ = nets.frozen(critic, batch.final_obs[at[0]][None], states[critic].detach())
                ends[t] = final["value"][0, 0, 0]
        values = torch.stack([said["value"][0] for said in heads])
        log_pi = torch.stack([said["logits"].log_softmax(0)[batch.action[t, e]] for t, said in enumerate(heads[:-1])])
        after_ = torch.stack([ends.get(t, values[t + 1]) for t in range(len(log_pi))]).detach()
        targets, advantages = vtrace(
            (log_pi.detach() - batch.extras["log_mu"][:, e]).exp()[:, None],
            batch.reward[:, e : e + 1],
            values[:-1, None].detach(),
            after_[:, None],
            config.discount * ~batch.terminated[:, e : e + 1],
            (batch.terminated | batch.truncated)[:, e : e + 1],
            lam=config.lam,
        )
        for t in batch.valid[:, e].nonzero()[:, 0].tolist():
            probabilities = heads[t]["logits"].softmax(0)
            bonus = -(probabilities * probabilities.log()).sum()
            error = targets[t, 0] - values[t]
            terms.append(
                -log_pi[t] * advantages[t, 0] + config.value_cost * 0.5 * error**2 - config.entropy_cost * bonus
            )
    return torch.stack(terms).mean()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize("spec", [DISCRETE, SEVERAL, BOX], ids=lambda spec: spec.env)
def test_every_kind_of_action_moves_every_parameter(spec: Spec, memory: int, shared: bool) -> None:
    algorithm = Impala(ImpalaConfig(memory=memory, shared=shared, hidden=(8,)))
    nets = nets_of(algorithm, spec)
    rng = np.random.default_rng(0)
    forward = build_forward(algorithm.acting(spec), spec)
    acting = tuple(f"{name}." for name in algorithm.acting(spec))
    forward.load(nets.params(sum(name.startswith(acting) for name, _ in nets.layout.entries)))
    starts = {name: np.zeros((1, 2, memory), np.float32) for name in algorithm.acting(spec)} if memory else {}
    obs = rng.normal(size=(7, 1, 3)).astype(np.float32)
    acts = [algorithm.act(forward.recall(row, starts)[0], np.zeros(1, np.float32), rng) for row in obs[:-1]]
    batch = Batch(
        obs=torch.tensor(obs),
        action=torch.tensor(np.stack([act.action for act in acts])),
        reward=torch.tensor(rng.normal(size=(6, 1)), dtype=torch.float32),
        terminated=torch.zeros(6, 1, dtype=torch.bool),
        truncated=torch.zeros(6, 1, dtype=torch.bool),
        valid=torch.ones(6, 1, dtype=torch.bool),
        weights=torch.ones(1),
        version=torch.ones(6, 1),
        extras={"log_mu": torch.tensor(np.stack([act.extras["log_mu"] for act in acts]))},
        starts={name: torch.tensor(start) for name, start in starts.items()},
        first=torch.zeros(7, 1, dtype=torch.bool),
        final_at=torch.zeros(0, dtype=torch.long),
        final_obs=torch.zeros(0, 3),
    )

    losses = algorithm.losses(nets, batch, None)
    networks = algorithm.groups()["impala"].networks
    losses.groups["impala"].backward(inputs=nets.parameters(*networks))

    assert networks == tuple(algorithm.networks(spec))
    for name, span, _ in nets.layout.spans():
        assert nets.gradient[span].any(), name


def test_observations_are_normalised_if_that_is_wanted() -> None:
    networks = Impala(ImpalaConfig(normalise_obs=True, hidden=(8,))).networks(DISCRETE)

    assert [network.torso for network in networks.values()] == 2 * [Mlp(hidden=(8,), activation="tanh", normalise=True)]
    with pytest.raises(ConfigError, match=r"algorithm\.normalise_obs must be false"):
        Impala(ImpalaConfig(normalise_obs=True)).networks(replace(DISCRETE, classes=(2, 2, 2)))


def test_actors_run_the_value_only_if_it_remembers() -> None:
    assert set(Impala(ImpalaConfig()).acting(DISCRETE)) == {"policy"}
    assert set(Impala(ImpalaConfig(memory=4)).acting(DISCRETE)) == {"policy", "value"}
    assert set(Impala(ImpalaConfig(memory=4, shared=True)).acting(DISCRETE)) == {"policy"}


@pytest.mark.parametrize(
    ("knob", "value", "rule"),
    [
        ("discount", 1.1, "in [0, 1]"),
        ("rho_bar", 0.0, "> 0 and finite"),
        ("c_bar", float("inf"), "> 0 and finite"),
        ("pg_rho_bar", -1.0, "> 0 and finite"),
        ("lam", 1.5, "in [0, 1]"),
        ("entropy_cost", -0.1, ">= 0"),
        ("log_std", 21.0, "in [-20, 20]"),
        ("memory", -1, ">= 0"),
    ],
)
def test_a_knob_out_of_range_is_named(knob: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ImpalaConfig(**{knob: value})  # type: ignore[arg-type]

    assert str(caught.value) == f"algorithm.{knob} must be {rule}, got {value}"
