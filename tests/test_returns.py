"""n-step returns against their definition."""

import numpy as np
import pytest
import torch

from starling.returns import n_step

DISCOUNT = 0.9


def slowly(rewards: list[float], terminated: bool) -> tuple[float, float]:
    total = sum(DISCOUNT**k * reward for k, reward in enumerate(rewards))
    return total, 0.0 if terminated else DISCOUNT ** len(rewards)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("ending", ["none", "terminated", "truncated"])
def test_n_step_is_its_definition_wherever_the_episode_ends(steps: int, ending: str) -> None:
    length, rewards = 4, [1.0, -2.0, 0.5, 3.0]
    valid = np.arange(length)[:, None] < steps
    reward = np.array(rewards)[:, None] * valid
    terminated = np.zeros((length, 1), bool)
    terminated[steps - 1] = ending == "terminated"

    total, factor = n_step(reward, terminated, valid, DISCOUNT)

    assert (total[0], factor[0]) == pytest.approx(slowly(rewards[:steps], ending == "terminated"))


def test_rewards_behind_the_end_of_a_window_do_not_count() -> None:
    valid = np.array([[True], [False]])
    reward = np.array([[1.0], [100.0]])

    total, factor = n_step(reward, np.zeros((2, 1), bool), valid, DISCOUNT)

    assert total[0] == 1.0
    assert factor[0] == pytest.approx(DISCOUNT)


def test_tensors_and_arrays_get_the_same_return() -> None:
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(5, 7)).astype(np.float32)
    steps = rng.integers(1, 6, 7)
    valid = np.arange(5)[:, None] < steps
    terminated = (np.arange(5)[:, None] == steps - 1) & (rng.random(7) < 0.5)

    arrays = n_step(reward, terminated, valid, DISCOUNT)
    tensors = n_step(torch.tensor(reward), torch.tensor(terminated), torch.tensor(valid), DISCOUNT)

    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5)
