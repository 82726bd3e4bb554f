"""Policies' distributions against slow definitions in float64, as arrays and as tensors."""

from math import log, pi

import numpy as np
import pytest
import torch

from starling.distributions import entropy, judge, log_prob, mode, policy_heads, sample, sample_judged
from starling.networks import Linear, Lone
from starling.spec import ArraySpec, Spec
from starling.types import Array, Columns

RNG = np.random.default_rng(3)
EXTREME = np.array([[0.0, 1e4, -1e4], [-1e4, -1e4, -1e4], [88.0, 89.0, -100.0], [1e-8, 0.0, 0.0]], np.float32)


def tensors(outputs: Columns) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in outputs.items()}


def slow_softmax(logits: Array) -> list[float]:
    weights = [float(np.exp(np.float64(x) - np.float64(max(logits)))) for x in logits]
    return [weight / sum(weights) for weight in weights]


def both(function: object, outputs: Columns, *actions: Array) -> list[Array]:
    """Return what arrays give and what tensors give."""
    by_torch = function(tensors(outputs), *map(torch.tensor, actions))  # type: ignore[operator]
    return [function(outputs, *actions), by_torch.numpy()]  # type: ignore[operator]


def test_a_categorical_is_its_definition() -> None:
    logits = RNG.normal(size=(5, 4)).astype(np.float32)
    action = RNG.integers(4, size=5)
    probabilities = np.array([slow_softmax(row) for row in logits])

    for actual in both(log_prob, {"logits": logits}, action):
        np.testing.assert_allclose(actual, np.log(probabilities[range(5), action]), rtol=1e-5)
    for actual in both(entropy, {"logits": logits}):
        np.testing.assert_allclose(actual, -(probabilities * np.log(probabilities)).sum(1), rtol=1e-5)


def test_extreme_logits_give_finite_numbers_and_gradients() -> None:
    outputs = {"logits": torch.tensor(EXTREME, requires_grad=True)}

    (log_prob(outputs, torch.zeros(4, dtype=torch.long)).sum() + entropy(outputs).sum()).backward()

    assert outputs["logits"].grad is not None
    assert torch.isfinite(outputs["logits"].grad).all()
    for actual in both(log_prob, {"logits": EXTREME}, np.zeros(4, np.int64)):
        np.testing.assert_allclose(actual, [-1e4, -log(3), -1.31326, -log(3)], rtol=1e-4)
    for actual in both(entropy, {"logits": EXTREME}):
        np.testing.assert_allclose(actual, [0.0, log(3), 0.58220, log(3)], atol=1e-4)


def test_what_is_impossible_is_never_drawn_and_adds_no_entropy() -> None:
    logits = np.tile(np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], np.float32), (2000, 1))

    drawn = sample({"logits": logits}, np.random.default_rng(0))

    assert set(drawn.tolist()) == {1, 3}
    for actual in both(entropy, {"logits": logits[:2]}):
        np.testing.assert_allclose(actual, log(2), rtol=1e-5)


def test_actions_are_drawn_as_often_as_their_probability_says() -> None:
    logits = np.array([0.5, -1.0, 2.0], np.float32)

    drawn = sample({"logits": np.tile(logits, (40_000, 1))}, np.random.default_rng(1))

    np.testing.assert_allclose(np.bincount(drawn) / 40_000, slow_softmax(logits), atol=0.01)


def test_several_actions_at_once_are_a_product() -> None:
    parts = {"logits_0": RNG.normal(size=(6, 2)).astype(np.float32), "logits_1": EXTREME[[0, 1, 2, 3, 0, 1]]}
    action = np.stack([RNG.integers(2, size=6), RNG.integers(3, size=6)], 1)
    alone = [{"logits": logits} for logits in parts.values()]

    for actual in both(log_prob, parts, action):
        expected = sum(log_prob(one, action[:, i]) for i, one in enumerate(alone))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for actual in both(entropy, parts):
        np.testing.assert_allclose(actual, sum(entropy(one) for one in alone), rtol=1e-4, atol=1e-5)
    assert sample(parts, np.random.default_rng(0)).shape == (6, 2)
    assert np.array_equal(mode(parts), np.stack([logits.argmax(1) for logits in parts.values()], 1))


def test_a_gaussian_is_its_definition() -> None:
    mean, log_std = RNG.normal(size=(5, 3)).astype(np.float32), np.array([-2.0, 0.0, 1.5], np.float32)
    outputs = {"mean": mean, "log_std": np.broadcast_to(log_std, (5, 3)).copy()}
    action = (mean + RNG.normal(size=(5, 3)) * 3).astype(np.float32)
    std = np.exp(log_std.astype(np.float64))

    density = -0.5 * ((action - mean.astype(np.float64)) / std) ** 2 - np.log(std * np.sqrt(2 * pi))
    for actual in both(log_prob, outputs, action):
        np.testing.assert_allclose(actual, density.sum(1), rtol=1e-5)
    for actual in both(entropy, outputs):
        np.testing.assert_allclose(actual, np.log(std * np.sqrt(2 * pi * np.e)).sum(), rtol=1e-5)
    assert np.array_equal(mode(outputs), mean)


def test_gaussian_samples_have_its_moments_and_are_float32() -> None:
    outputs = {"mean": np.full((50_000, 1), 2.0, np.float32), "log_std": np.full((50_000, 1), -1.0, np.float32)}

    drawn = sample(outputs, np.random.default_rng(0))

    assert drawn.dtype == np.float32
    assert drawn.mean() == pytest.approx(2.0, abs=0.01)
    assert drawn.std() == pytest.approx(np.exp(-1.0), abs=0.01)


@pytest.mark.parametrize("kind", ["one", "several", "box"])
def test_both_judgements_at_once_are_those_of_each_alone(kind: str) -> None:
    outputs, action = {
        "one": ({"logits": EXTREME}, np.array([0, 1, 2, 1])),
        "several": ({"logits_0": EXTREME[:, :2], "logits_1": EXTREME}, np.array([[0, 1], [1, 2], [0, 0], [1, 1]])),
        "box": ({"mean": EXTREME[2:] / 50, "log_std": EXTREME[2:] / 100}, np.ones((2, 3), np.float32)),
    }[kind]

    log_probs, undecided = judge(outputs, action)

    np.testing.assert_array_equal(log_probs, log_prob(outputs, action))
    np.testing.assert_array_equal(undecided, entropy(outputs))


@pytest.mark.parametrize("kind", ["one", "masked", "several", "box"])
def test_what_is_drawn_comes_with_its_own_probability(kind: str) -> None:
    logits, mean = RNG.normal(size=(200, 5)).astype(np.float32) * 3, RNG.normal(size=(200, 2)).astype(np.float32)
    outputs = {
        "one": {"logits": logits},
        "masked": {"logits": logits, "mask": RNG.random((200, 5)) < 0.5 + np.eye(5)[0]},
        "several": {"logits_0": logits[:, :2], "logits_1": logits[:, 2:]},
        "box": {"mean": mean, "log_std": mean / 5},
    }[kind]

    action, log_probs = sample_judged(outputs, np.random.default_rng(4))

    np.testing.assert_array_equal(action, sample(outputs, np.random.default_rng(4)))
    np.testing.assert_allclose(log_probs, log_prob(outputs, action), rtol=1e-4, atol=1e-5)
    assert log_probs.dtype == np.float32


def test_time_may_stand_before_the_copies() -> None:
    logits, action = RNG.normal(size=(7, 5, 4)).astype(np.float32), RNG.integers(4, size=(7, 5))

    for actual in both(log_prob, {"logits": logits}, action):
        np.testing.assert_allclose(actual[3], log_prob({"logits": logits[3]}, action[3]), rtol=1e-6)


def test_the_actions_choose_the_heads() -> None:
    obs = ArraySpec((3,), "float32")
    one = Spec(env="one", obs=obs, action=ArraySpec((), "int64"), num_actions=4)
    two = Spec(env="two", obs=obs, action=ArraySpec((2,), "int64"), choices=(2, 3))
    box = Spec(env="box", obs=obs, action=ArraySpec((2,), "float32"), low=(-1.0, -1.0), high=(1.0, 1.0))

    assert policy_heads(one, 0.1, 0.0) == {"logits": Linear(outputs=4, scale=0.1)}
    assert policy_heads(two, 1.0, 0.0) == {"logits_0": Linear(outputs=2), "logits_1": Linear(outputs=3)}
    assert policy_heads(box, 1.0, -0.5) == {"mean": Linear(outputs=2), "log_std": Lone(outputs=2, initial=-0.5)}
