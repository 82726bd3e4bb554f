"""Returns against their definitions."""

import numpy as np
import pytest
import torch

from starling.returns import (
    Corrected,
    gae,
    in_numpy,
    lambda_returns,
    n_step,
    returns_to_go,
    vtrace,
    whole_returns,
)

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


def slow_lambda_return(t: int, reward: list[float], after: list[float], over: list[str], lam: float) -> float:
    """Return the definition by recursion: the next value, and what came of it, mixed."""
    if over[t] == "terminated":
        return reward[t]
    if over[t] == "truncated" or t == len(reward) - 1:
        return reward[t] + DISCOUNT * after[t]
    later = slow_lambda_return(t + 1, reward, after, over, lam)
    return reward[t] + DISCOUNT * ((1.0 - lam) * after[t] + lam * later)


def unrolls(length: int = 12, copies: int = 5) -> tuple[np.ndarray, ...]:
    """Return rewards, values, next values, discounts and cuts of episodes that end in either way."""
    rng = np.random.default_rng(4)
    reward, value, after = rng.normal(size=(3, length, copies))
    over = rng.choice(["", "", "", "terminated", "truncated"], size=(length, copies))
    return reward, value, after, DISCOUNT * (over != "terminated"), over != "", over


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_are_their_definition_wherever_episodes_end(lam: float) -> None:
    reward, value, after, discount, cut, over = unrolls()

    returns = lambda_returns(reward, after, discount, cut, lam)
    advantage = gae(reward, value, after, discount, cut, lam)

    for t, e in np.ndindex(reward.shape):
        expected = slow_lambda_return(t, list(reward[:, e]), list(after[:, e]), list(over[:, e]), lam)
        assert returns[t, e] == pytest.approx(expected, abs=1e-6)
        assert advantage[t, e] == pytest.approx(expected - value[t, e], abs=1e-6)


def test_lambda_zero_is_the_one_step_error() -> None:
    reward, value, after, discount, cut, _ = unrolls()

    advantage = gae(reward, value, after, discount, cut, 0.0)

    np.testing.assert_allclose(advantage, reward + discount * after - value)


def test_lambda_one_is_the_discounted_sum_when_nothing_ends() -> None:
    reward, _, after, _, _, _ = unrolls()
    discount, cut = np.full(reward.shape, DISCOUNT), np.zeros(reward.shape, bool)

    returns = lambda_returns(reward, after, discount, cut, 1.0)

    factors = DISCOUNT ** np.arange(len(reward))[:, None]
    np.testing.assert_allclose(returns[0], (factors * reward).sum(0) + DISCOUNT ** len(reward) * after[-1])


@pytest.mark.parametrize(("lam", "discount"), [(0.0, 0.9), (1.0, 0.0), (0.0, 0.0)])
def test_gae_survives_a_product_of_zero(lam: float, discount: float) -> None:
    reward, value, after, _, cut, _ = unrolls()

    advantage = gae(reward, value, after, np.full(reward.shape, discount), cut, lam)

    np.testing.assert_allclose(advantage, reward + discount * after - value)


def test_the_row_of_a_reset_reaches_no_other() -> None:
    reward, _, after, discount, cut, _ = unrolls()
    cut[3], discount[3] = True, DISCOUNT  # row 4 only resets
    before = lambda_returns(reward, after, discount, cut, 0.9)
    reward[4], after[4] = 1e6, 1e6

    changed = lambda_returns(reward, after, discount, cut, 0.9)

    assert np.array_equal(np.delete(changed, 4, 0), np.delete(before, 4, 0))


def test_tensors_and_arrays_get_the_same_lambda_return_in_their_own_precision() -> None:
    reward, _, after, discount, cut, _ = unrolls()
    arrays = [x.astype(np.float32) for x in (reward, after, discount)]

    by_numpy = lambda_returns(*arrays, cut, 0.9)
    by_torch = lambda_returns(*map(torch.tensor, arrays), torch.tensor(cut), 0.9)

    assert (by_numpy.dtype, by_torch.dtype) == (np.float32, torch.float32)
    np.testing.assert_allclose(by_numpy, by_torch.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_numpy, lambda_returns(reward, after, discount, cut, 0.9), rtol=1e-5, atol=1e-5)


def test_shapes_that_would_broadcast_are_refused() -> None:
    reward, _, after, discount, cut, _ = unrolls()

    with pytest.raises(AssertionError, match="must be \\[T, E\\] alike"):
        lambda_returns(reward, after[:1], discount, cut, 0.9)


BARS = {"rho_bar": 1.2, "c_bar": 0.9, "pg_rho_bar": 1.5}


def ratios(shape: tuple[int, ...]) -> np.ndarray:
    ratio: np.ndarray = np.exp(np.random.default_rng(9).normal(scale=0.8, size=shape))
    return ratio


def slow_vtrace(lam: float, rho_bar: float, c_bar: float, pg_rho_bar: float) -> Corrected:
    """Return the definition: a sum over all later steps of the episode, each with a product of traces."""
    reward, value, after, discount, _, over = unrolls()
    ratio = ratios(reward.shape)
    targets, advantages = np.zeros_like(reward), np.zeros_like(reward)
    for s, e in reversed(list(np.ndindex(reward.shape))):
        target, trace = value[s, e], 1.0
        for t in range(s, len(reward)):
            error = reward[t, e] + discount[t, e] * after[t, e] - value[t, e]
            target += trace * min(rho_bar, ratio[t, e]) * error
            trace *= discount[t, e] * lam * min(c_bar, ratio[t, e])
            if over[t, e]:
                break
        targets[s, e] = target
        ahead = after[s, e]
        if not over[s, e] and s + 1 < len(reward):
            # as the next value is the next row's only where nothing ended, what it became is told by its change
            ahead += lam * (targets[s + 1, e] - value[s + 1, e])
        advantages[s, e] = min(pg_rho_bar, ratio[s, e]) * (reward[s, e] + discount[s, e] * ahead - value[s, e])
    return Corrected(targets, advantages)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bars", [BARS, {"rho_bar": 1.0, "c_bar": 1.0, "pg_rho_bar": 1.0}], ids=["bars", "paper"])
def test_vtrace_is_its_definition_wherever_episodes_end(lam: float, bars: dict[str, float]) -> None:
    reward, value, after, discount, cut, _ = unrolls()

    targets, advantages = vtrace(ratios(reward.shape), reward, value, after, discount, cut, lam=lam, **bars)

    expected = slow_vtrace(lam, **bars)
    np.testing.assert_allclose(targets, expected.targets, rtol=0, atol=1e-6)
    np.testing.assert_allclose(advantages, expected.advantages, rtol=0, atol=1e-6)


def rows_that_follow() -> tuple[np.ndarray, ...]:
    """Return unrolls in which the next value is the next row's wherever nothing ended, as in real ones."""
    reward, value, after, discount, cut, over = unrolls()
    after[:-1] = np.where(cut[:-1], after[:-1], value[1:])
    return reward, value, after, discount, cut, over


def test_on_policy_vtrace_is_the_n_step_return() -> None:
    reward, value, after, discount, cut, over = rows_that_follow()

    targets, advantages = vtrace(np.ones_like(reward), reward, value, after, discount, cut)

    for t, e in np.ndindex(reward.shape):
        expected = slow_lambda_return(t, list(reward[:, e]), list(after[:, e]), list(over[:, e]), 1.0)
        assert targets[t, e] == pytest.approx(expected, abs=1e-6)
        assert advantages[t, e] == pytest.approx(expected - value[t, e], abs=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_on_policy_vtrace_is_the_lambda_return_and_its_advantage_is_gae(lam: float) -> None:
    reward, value, after, discount, cut, _ = rows_that_follow()

    targets, advantages = vtrace(np.ones_like(reward), reward, value, after, discount, cut, lam=lam)

    np.testing.assert_allclose(targets, lambda_returns(reward, after, discount, cut, lam), atol=1e-9)
    np.testing.assert_allclose(advantages, gae(reward, value, after, discount, cut, lam), atol=1e-9)


@pytest.mark.parametrize(("lam", "discount"), [(0.0, 0.9), (1.0, 0.0), (0.0, 0.0)])
def test_vtrace_survives_a_product_of_zero(lam: float, discount: float) -> None:
    reward, value, after, _, cut, _ = unrolls()
    ratio = ratios(reward.shape)

    targets, advantages = vtrace(ratio, reward, value, after, np.full(reward.shape, discount), cut, lam=lam)

    error = reward + discount * after - value
    np.testing.assert_allclose(targets, value + np.minimum(ratio, 1.0) * error)
    np.testing.assert_allclose(advantages, np.minimum(ratio, 1.0) * error)


def test_steps_that_count_for_nothing_leave_the_value_where_it_is() -> None:
    reward, value, after, discount, cut, _ = unrolls()
    ratio = ratios(reward.shape)

    targets, _ = vtrace(ratio, reward, value, after, discount, cut, rho_bar=1e-12)
    impossible = vtrace(np.zeros_like(ratio), reward, value, after, discount, cut)

    np.testing.assert_allclose(targets, value, atol=1e-9)
    np.testing.assert_array_equal(impossible.targets, value)
    assert not impossible.advantages.any()


def test_a_ratio_beyond_all_numbers_is_clipped() -> None:
    reward, value, after, discount, cut, _ = unrolls()

    endless = vtrace(np.full(reward.shape, np.inf), reward, value, after, discount, cut)

    ones = vtrace(np.ones(reward.shape), reward, value, after, discount, cut)
    np.testing.assert_array_equal(endless.targets, ones.targets)
    np.testing.assert_array_equal(endless.advantages, ones.advantages)


def test_nothing_behind_a_truncation_reaches_the_target_or_the_advantage_before_it() -> None:
    reward, value, after, discount, cut, _ = unrolls()
    cut[3], discount[3] = True, DISCOUNT
    ratio = ratios(reward.shape)
    before = vtrace(ratio, reward, value, after, discount, cut)
    for array in (reward, value, after, ratio):
        array[4:] = 1e3  # row 4 may only reset, or begin another episode

    changed = vtrace(ratio, reward, value, after, discount, cut)

    np.testing.assert_array_equal(changed.targets[:4], before.targets[:4])
    np.testing.assert_array_equal(changed.advantages[:4], before.advantages[:4])


def test_tensors_and_arrays_get_the_same_vtrace_also_by_way_of_numpy() -> None:
    reward, value, after, discount, cut, _ = unrolls()
    arrays = [x.astype(np.float32) for x in (ratios(reward.shape), reward, value, after, discount)]
    tensors = [*map(torch.tensor, arrays), torch.tensor(cut)]
    tensors[2].requires_grad_()

    found = [vtrace(*arrays, cut, lam=0.9), vtrace(*tensors, lam=0.9), in_numpy(vtrace, *tensors, lam=0.9)]

    expected = vtrace(ratios(reward.shape), reward, value, after, discount, cut, lam=0.9)
    for made in found:
        for actual, definition in zip(made, expected, strict=True):
            assert actual.dtype in (np.float32, torch.float32)
            tensor = torch.as_tensor(actual).detach()
            np.testing.assert_allclose(tensor.numpy(), definition, rtol=1e-5, atol=1e-5)
    assert not any(x.requires_grad for x in found[2])
    single = in_numpy(lambda_returns, tensors[1], *tensors[3:], lam=0.5)
    torch.testing.assert_close(single, lambda_returns(tensors[1], *tensors[3:], lam=0.5))


def test_vtrace_refuses_shapes_that_would_broadcast() -> None:
    reward, value, after, discount, cut, _ = unrolls()

    with pytest.raises(AssertionError, match=r"ratio, reward, .* must be \[T, E\] alike"):
        vtrace(ratios(reward.shape)[:, :1], reward, value, after, discount, cut)


def test_returns_to_go_and_of_the_whole_count_what_is_in_the_rows() -> None:
    rng = np.random.default_rng(3)
    reward = rng.normal(size=(9, 40))
    over = rng.random((9, 40)) < 0.3
    first = np.concatenate([rng.random((1, 40)) < 0.5, over[:-1]])

    to_go, whole = returns_to_go(reward, over, DISCOUNT), whole_returns(reward, over, first, DISCOUNT)

    for e in range(40):
        begins = [t for t in range(9) if t == 0 or over[t - 1, e]]
        for begin, end in zip(begins, [*begins[1:], 9], strict=True):
            for t in range(begin, end):
                assert to_go[t, e] == pytest.approx(slowly(list(reward[t:end, e]), True)[0])
                assert whole[t, e] == pytest.approx(slowly(list(reward[begin:end, e]), True)[0])


def test_tensors_and_arrays_get_the_same_returns_of_an_episode() -> None:
    rng = np.random.default_rng(3)
    reward, over = rng.normal(size=(9, 4)), rng.random((9, 4)) < 0.3

    arrays = returns_to_go(reward, over, DISCOUNT), whole_returns(reward, over, over, DISCOUNT)
    over_there = torch.tensor(over)
    tensors = (
        returns_to_go(torch.tensor(reward), over_there, DISCOUNT),
        whole_returns(torch.tensor(reward), over_there, over_there, DISCOUNT),
    )

    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_allclose(array, tensor.numpy())
