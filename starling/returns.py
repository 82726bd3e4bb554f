"""Returns, by operators only, so that the same lines serve an actor's arrays and a learner's tensors."""

from typing import Any


def n_step(reward: Any, terminated: Any, valid: Any, discount: float) -> tuple[Any, Any]:
    """Return each window's discounted reward, and the factor of the value behind its last valid step.

    All inputs are `[L, W]`. The factor is discount ** steps, and zero where the window ended by termination;
    truncation leaves it, so a truncated window bootstraps from the observation stored after its last step.
    """
    assert reward.shape == terminated.shape == valid.shape, "reward, terminated and valid must be [L, W] alike"
    earned = reward * valid
    total = earned[0]
    for t in range(1, len(earned)):
        total = total + discount**t * earned[t]
    base = 0.0 * total + discount  # of reward's own precision
    return total, base ** valid.sum(0) * ~(terminated & valid).any(0)


def lambda_returns(reward: Any, next_value: Any, discount: Any, cut: Any, lam: float) -> Any:
    """Return the lambda-return of every step: lambda 0 is its reward and the value after it, 1 the whole unroll's.

    All inputs are `[T, E]`. `next_value` is of each step's own successor, `discount` 0 where the episode terminated;
    nothing flows back across a `cut`, the end of an episode in either way. A row that is no step stands behind a cut,
    so what is computed for it reaches no other row. No gradient flows through: hand in values without a graph.
    """
    shapes = {x.shape for x in (reward, next_value, discount, cut)}
    assert len(shapes) == 1, f"reward, next_value, discount and cut must be [T, E] alike, got {shapes}"
    carry = discount * ~cut * lam
    returns = reward + (discount - carry) * next_value
    returns[-1] = reward[-1] + discount[-1] * next_value[-1]  # nothing is known of what came after
    for t in range(len(returns) - 2, -1, -1):
        returns[t] += carry[t] * returns[t + 1]
    return returns


def gae(reward: Any, value: Any, next_value: Any, discount: Any, cut: Any, lam: float) -> Any:
    """Return the generalized advantage estimate (Schulman et al., 2016): the lambda-return less the value.

    With lambda 1 it is the n-step advantage of A3C. Inputs as of `lambda_returns`.
    """
    return lambda_returns(reward, next_value, discount, cut, lam) - value


def returns_to_go(reward: Any, discount: float, cut: Any) -> Any:
    """Return what each step and those after it earned, `[T, E]`, up to a `cut` or the last row.

    That is the lambda-return with lambda 1 of a value that is 0 everywhere.
    """
    nothing = 0.0 * reward
    return lambda_returns(reward, nothing, nothing + discount, cut, 1.0)


def whole_returns(reward: Any, discount: float, cut: Any, first: Any) -> Any:
    """Return for each step, `[T, E]`, what its whole episode earned in these rows.

    `first` is True where an episode begins; one that is under way at the first row counts from there.
    """
    assert first.shape == reward.shape, "first must be [T, E] as reward is"
    returns = returns_to_go(reward, discount, cut)
    for t in range(1, len(returns)):
        returns[t] = returns[t] * first[t] + returns[t - 1] * ~first[t]
    return returns
