"""A3C's loss against its definition, step by step, and its switches."""

from math import log

import numpy as np
import pytest
import torch

from starling.algorithms.a3c import A3c, A3cConfig
from starling.errors import ConfigError
from starling.networks.nets import LearnerNets
from starling.spec import ArraySpec, Spec
from starling.types import Array, Batch, Place
from tests.test_dqn import SPEC as STATES_SPEC

DISCOUNT = 0.9
VECTOR = ArraySpec((3,), "float32")
DISCRETE = Spec(env="discrete", obs=VECTOR, action=ArraySpec((), "int64"), num_actions=4)
SEVERAL = Spec(env="several", obs=VECTOR, action=ArraySpec((2,), "int64"), choices=(2, 3))
BOX = Spec(env="box", obs=VECTOR, action=ArraySpec((2,), "float32"), low=(-1.0, -1.0), high=(1.0, 1.0))


class Tables:
    """Logits and values by state, read like a network."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.logits = torch.tensor(rng.normal(size=(6, 3)), requires_grad=True)
        self.values = torch.tensor(rng.normal(size=(6, 1)), requires_grad=True)

    def __getitem__(self, name: str) -> object:
        return lambda obs: {"logits": self.logits[obs], "value": self.values[obs]}

    def frozen(self, name: str, obs: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"logits": self.logits[obs], "value": self.values[obs]}


def unroll_of_states(length: int = 8, copies: int = 5) -> Batch:
    """Return an unroll whose episodes end in either way; a row behind an end only resets in the last copy."""
    rng = np.random.default_rng(1)
    over = rng.choice(["", "", "terminated", "truncated"], size=(length, copies))
    over[:, -1] = ["", "truncated", "", "", "terminated", "", "", ""]
    valid = np.ones((length, copies), bool)
    valid[[2, 5], -1] = False
    ended = over != ""
    return Batch(
        obs=torch.tensor(rng.integers(6, size=(length + 1, copies))),
        action=torch.tensor(rng.integers(3, size=(length, copies))),
        reward=torch.tensor(rng.normal(size=(length, copies))),
        terminated=torch.tensor(over == "terminated"),
        truncated=torch.tensor(over == "truncated"),
        valid=torch.tensor(valid),
        weights=torch.ones(copies),
        version=torch.ones(length, copies),
        first=torch.zeros(length + 1, copies, dtype=torch.bool),
        final_at=torch.tensor(np.flatnonzero(ended)),
        final_obs=torch.tensor(rng.integers(6, size=int(ended.sum()))),
    )


def slow_return(batch: Batch, values: Array, t: int, e: int) -> float:
    """Return the definition: rewards up to the end of the episode or of the unroll, then what is expected there."""
    total, factor = 0.0, 1.0
    while True:
        total += factor * float(batch.reward[t, e])
        factor *= DISCOUNT
        if batch.terminated[t, e]:
            return total
        if batch.truncated[t, e]:
            at = batch.final_at.tolist().index(t * batch.reward.shape[1] + e)
            return total + factor * values[int(batch.final_obs[at])]
        t += 1
        if t == len(batch.reward):
            return total + factor * values[int(batch.obs[t, e])]


def test_the_loss_and_its_gradient_are_their_definition() -> None:
    nets, batch = Tables(), unroll_of_states()
    algorithm = A3c(A3cConfig(discount=DISCOUNT, value_cost=0.7, entropy_cost=0.05, shared=True))

    losses = algorithm.losses(nets, batch, None)

    values = nets.values.detach().numpy()[:, 0]
    steps = batch.valid.nonzero().tolist()
    expected = torch.zeros((), dtype=torch.float64)
    for t, e in steps:
        state, action = int(batch.obs[t, e]), int(batch.action[t, e])
        probabilities = nets.logits[state].softmax(0)
        target = slow_return(batch, values, t, e)
        expected = expected - probabilities[action].log() * (target - values[state])
        expected = expected + 0.7 * 0.5 * (target - nets.values[state, 0]) ** 2
        expected = expected + 0.05 * (probabilities * probabilities.log()).sum()
    expected = expected / len(steps)
    torch.testing.assert_close(losses.groups["a3c"], expected)
    inputs = [nets.logits, nets.values]
    for actual, slow in zip(
        torch.autograd.grad(losses.groups["a3c"], inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(actual, slow)
    assert len(steps) == 38


def test_an_unroll_without_a_step_moves_nothing() -> None:
    nets, batch = Tables(), unroll_of_states()
    batch.valid[:] = False

    loss = A3c(A3cConfig(shared=True)).losses(nets, batch, None).groups["a3c"]

    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, [nets.logits, nets.values]))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize("spec", [DISCRETE, SEVERAL, BOX], ids=lambda spec: spec.env)
def test_every_kind_of_action_moves_every_parameter(spec: Spec, memory: int, shared: bool) -> None:
    algorithm = A3c(A3cConfig(memory=memory, shared=shared, hidden=(8,)))
    nets = LearnerNets(algorithm.networks(spec), {}, spec, torch.Generator().manual_seed(0), torch.device("cpu"))
    rng = np.random.default_rng(0)
    outputs = {"logits": np.zeros((1, 4), np.float32)}
    if spec.choices:
        outputs = {f"logits_{i}": np.zeros((1, n), np.float32) for i, n in enumerate(spec.choices)}
    elif not spec.num_actions:
        outputs = {"mean": np.zeros((1, 2), np.float32), "log_std": np.zeros((1, 2), np.float32)}
    action = np.stack([algorithm.act(outputs, np.zeros(1, np.float32), rng).action for _ in range(6)])
    batch = Batch(
        obs=torch.tensor(rng.normal(size=(7, 1, 3)), dtype=torch.float32),
        action=torch.tensor(action),
        reward=torch.tensor(rng.normal(size=(6, 1)), dtype=torch.float32),
        terminated=torch.zeros(6, 1, dtype=torch.bool),
        truncated=torch.zeros(6, 1, dtype=torch.bool),
        valid=torch.ones(6, 1, dtype=torch.bool),
        weights=torch.ones(1),
        version=torch.ones(6, 1),
        starts={name: torch.zeros(1, 2, memory) for name in algorithm.networks(spec)} if memory else {},
        first=torch.zeros(7, 1, dtype=torch.bool),
        final_at=torch.zeros(0, dtype=torch.long),
        final_obs=torch.zeros(0, 3),
    )

    losses = algorithm.losses(nets, batch, None)
    networks = algorithm.groups()["a3c"].networks
    losses.groups["a3c"].backward(inputs=nets.parameters(*networks))

    assert networks == tuple(algorithm.networks(spec))
    for name, span, _ in nets.layout.spans():
        assert nets.gradient[span].any(), name


def test_the_first_policy_finds_every_action_nearly_alike() -> None:
    algorithm = A3c(A3cConfig())
    nets = LearnerNets(
        algorithm.networks(DISCRETE), {}, DISCRETE, torch.Generator().manual_seed(0), torch.device("cpu")
    )

    logits = nets.frozen("policy", torch.randn(100, 3, generator=torch.Generator().manual_seed(1)))["logits"]

    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
    assert (entropy > log(4) - 1e-4).all()


def test_actors_run_the_value_only_if_it_remembers() -> None:
    assert set(A3c(A3cConfig()).acting(DISCRETE)) == {"policy"}
    assert set(A3c(A3cConfig(memory=4)).acting(DISCRETE)) == {"policy", "value"}
    assert set(A3c(A3cConfig(memory=4, shared=True)).acting(DISCRETE)) == {"policy"}


def test_greedy_actions_are_the_likeliest_and_nothing_else_explores() -> None:
    algorithm = A3c(A3cConfig())

    assert algorithm.greedy({"logits": np.array([[0.0, 3.0, 1.0]], np.float32)}).tolist() == [1]
    assert not algorithm.explore(Place(1, 2, 4)).any()
    assert algorithm.window is None
    assert algorithm.networks(STATES_SPEC)["policy"].heads.keys() == {"logits"}


@pytest.mark.parametrize(
    ("knob", "value", "rule"),
    [
        ("discount", 1.1, "in [0, 1]"),
        ("gae_lambda", -0.1, "in [0, 1]"),
        ("log_std", 21.0, "in [-20, 20]"),
        ("memory", -1, ">= 0"),
    ],
)
def test_a_knob_out_of_range_is_named(knob: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        A3cConfig(**{knob: value})  # type: ignore[arg-type]

    assert str(caught.value) == f"algorithm.{knob} must be {rule}, got {value}"
