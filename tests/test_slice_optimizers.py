"""The slices' optimizers: those of torch, A3C's by its formula, and the same bits however a vector is cut."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from param_server import optimizers
from param_server.config import OptimizerKind, SliceConfig
from param_server.optimizers import KINDS, Optimizer
from param_server.slices import cut
from starling.errors import ConfigError, RunError

STEPS = 1_000
SIZE = 101
RATE = 1e-3

TORCH: list[tuple[SliceConfig, Any]] = [
    (SliceConfig(optimizer="rmsprop"), lambda p: torch.optim.RMSprop(p, lr=RATE, alpha=0.99, eps=1e-8)),
    (SliceConfig(optimizer="adam"), lambda p: torch.optim.Adam(p, lr=RATE)),
    (SliceConfig(optimizer="adam", beta_1=0.0, eps=1e-5), lambda p: torch.optim.Adam(p, RATE, (0.0, 0.999), 1e-5)),
    (SliceConfig(optimizer="sgd"), lambda p: torch.optim.SGD(p, lr=RATE)),
    (SliceConfig(optimizer="sgd", momentum=0.9), lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)),
]


def gradients(steps: int = STEPS, size: int = SIZE) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    scale = np.exp(rng.normal(0.0, 2.0, size))  # values differ in how steep they are
    return (scale * rng.normal(size=(steps, size))).astype(np.float32)


def start(size: int = SIZE) -> NDArray[np.float32]:
    return np.random.default_rng(4).normal(0.0, 0.1, size).astype(np.float32)


def moved(config: SliceConfig, slices: int, given: NDArray[np.float32]) -> NDArray[np.float32]:
    values = start(given.shape[1])
    cuts = cut(len(values), slices)
    steppers = [Optimizer(config, values[span]) for span in cuts]
    for step, gradient in enumerate(given):
        for stepper, span in zip(steppers, cuts, strict=True):
            stepper.step(gradient[span], RATE / (1 + step % 3))
    return values


@pytest.mark.parametrize(("config", "build"), TORCH)
def test_a_thousand_steps_end_where_torchs_do(config: SliceConfig, build: Any) -> None:
    values = start()
    ours = Optimizer(config, values)
    theirs = torch.tensor(values, requires_grad=True)
    optimizer = build([theirs])

    for gradient in gradients():
        ours.step(gradient, RATE)
        theirs.grad = torch.from_numpy(gradient)
        optimizer.step()

    np.testing.assert_allclose(values, theirs.detach().numpy(), rtol=1e-6, atol=1e-6)
    assert not np.allclose(values, start(), atol=1e-2)


def test_a3cs_rmsprop_is_its_formula() -> None:
    values = start().astype(np.float64)
    ours = Optimizer(SliceConfig(eps=0.1), values)  # type: ignore[arg-type]
    expected, square = values.copy(), np.zeros(SIZE)

    for gradient in gradients().astype(np.float64):
        ours.step(gradient, RATE)
        square = 0.99 * square + 0.01 * gradient**2
        expected -= RATE * gradient / np.sqrt(square + 0.1)

    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)


def test_where_epsilon_stands_makes_a_difference() -> None:
    given = gradients(steps=20)

    inside, outside = (moved(SliceConfig(optimizer=kind, eps=0.1), 1, given) for kind in ("a3c_rmsprop", "rmsprop"))

    assert np.abs(inside - outside).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slices", [2, 3, 4])
def test_a_cut_changes_no_bit(kind: OptimizerKind, slices: int) -> None:
    given = gradients(steps=50)
    config = SliceConfig(optimizer=kind, momentum=0.9)

    np.testing.assert_array_equal(moved(config, slices, given), moved(config, 1, given))


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_of_several_blocks_moves_as_its_values_do(kind: OptimizerKind) -> None:
    given = np.tile(gradients(steps=3, size=1_000), (1, 70))[:, : optimizers.BLOCK + 1_234]
    config = SliceConfig(optimizer=kind)
    values = np.zeros(given.shape[1], np.float32)
    few = np.zeros(1_000, np.float32)

    for vector in (values, few):
        stepper = Optimizer(config, vector)
        for gradient in given:
            stepper.step(gradient[: len(vector)], RATE)

    np.testing.assert_array_equal(values, np.tile(few, 70)[: len(values)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_leaves_the_gradient_as_it_is(kind: OptimizerKind) -> None:
    gradient = gradients(steps=1)[0]
    gradient.flags.writeable = False

    Optimizer(SliceConfig(optimizer=kind), start()).step(gradient, RATE)

    np.testing.assert_array_equal(gradient, gradients(steps=1)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimizer_goes_on_bit_for_bit(kind: OptimizerKind) -> None:
    config = SliceConfig(optimizer=kind, momentum=0.9)
    given = gradients(steps=40)
    values = start()
    first = Optimizer(config, values)
    for gradient in given[:20]:
        first.step(gradient, RATE)
    restored_values, state = values.copy(), first.state()
    for gradient in given[20:]:
        first.step(gradient, RATE)

    second = Optimizer(config, restored_values)
    second.restore(state)
    for gradient in given[20:]:
        second.step(gradient, RATE)

    np.testing.assert_array_equal(restored_values, values)


def test_an_optimizer_of_another_kind_is_refused() -> None:
    adam, sgd = (Optimizer(SliceConfig(optimizer=kind), start()) for kind in ("adam", "sgd"))

    with pytest.raises(RunError, match="optimizer of the checkpoint must be sgd, as the settings say, got adam"):
        sgd.restore(adam.state())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"slices": 0}, "params.slices must be >= 1, got 0"),
        ({"learning_rate": 0.0}, "params.learning_rate must be > 0, got 0.0"),
        ({"decay": 1.0}, r"params.decay must be in \(0, 1\), got 1.0"),
        ({"beta_1": 1.0}, r"params.beta_1 must be in \[0, 1\), got 1.0"),
        ({"beta_2": 0.0}, r"params.beta_2 must be in \(0, 1\), got 0.0"),
        ({"eps": 0.0}, "params.eps must be > 0 or none, got 0.0"),
        ({"momentum": 1.0}, r"params.momentum must be in \[0, 1\), got 1.0"),
        ({"clip_norm": -1.0}, "params.clip_norm must be >= 0, got -1.0"),
        ({"anneal_env_steps": -1}, "params.anneal_env_steps must be >= 0, got -1"),
        ({"max_lag": -1}, "params.max_lag must be >= 0, got -1"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        SliceConfig(**settings)


def test_epsilon_is_the_kinds_own_unless_it_is_set() -> None:
    assert SliceConfig().epsilon == 0.1
    assert SliceConfig(optimizer="adam").epsilon == 1e-8
    assert SliceConfig(eps=1e-5).epsilon == 1e-5
