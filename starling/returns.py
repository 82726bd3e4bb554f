"""Returns, by operators only, so that the same lines serve an actor's arrays and a learner's tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple


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
    _require_alike(reward=reward, next_value=next_value, discount=discount, cut=cut)
    carry = discount * ~cut * lam
    returns = reward + (discount - carry) * next_value
    returns[-1] = reward[-1] + discount[-1] * next_value[-1]  # nothing is known of what came after
    return _from_behind(returns, carry)


def gae(reward: Any, value: Any, next_value: Any, discount: Any, cut: Any, lam: float) -> Any:
    """Return the generalized advantage estimate (Schulman et al., 2016): the lambda-return less the value.

    With lambda 1 it is the n-step advantage of A3C. Inputs as of `lambda_returns`.
    """
    return lambda_returns(reward, next_value, discount, cut, lam) - value


class Corrected(NamedTuple):
    """What V-trace makes of steps that another policy took."""

    targets: Any  # [T, E] for the value
    advantages: Any  # [T, E] for the policy


def vtrace(
    ratio: Any,
    reward: Any,
    value: Any,
    next_value: Any,
    discount: Any,
    cut: Any,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
) -> Corrected:
    """Return V-trace's targets and policy-gradient advantages (Espeholt et al., 2018, section 4).

    `ratio` is how much likelier each action is now than when it was taken; it is clipped to `rho_bar` in the temporal
    differences, to `c_bar` in the traces, which `lam` shortens, and to `pg_rho_bar` in the advantages. The others are
    as of `lambda_returns`, and so is what is known of an end: the step before it counts on `next_value`, that of its
    own last observation. With ratios of 1 the targets are lambda-returns, and the advantages those of `gae`.
    """
    _require_alike(ratio=ratio, reward=reward, value=value, next_value=next_value, discount=discount, cut=cut)
    off = ratio.clip(max=rho_bar) * (reward + discount * next_value - value)
    off = _from_behind(off, discount * ~cut * (lam * ratio.clip(max=c_bar)))  # of the targets from the values
    ahead = next_value + 0.0 * off
    ahead[:-1] += ~cut[:-1] * (lam * off[1:])  # where nothing is cut, the next value is the next row's
    return Corrected(value + off, ratio.clip(max=pg_rho_bar) * (reward + discount * ahead - value))


def returns_to_go(reward: Any, cut: Any, discount: float) -> Any:
    """Return what each step and those after it earned, `[T, E]`, up to a `cut` or the last row.

    That is the lambda-return with lambda 1 of a value that is 0 everywhere.
    """
    nothing = 0.0 * reward
    return lambda_returns(reward, nothing, nothing + discount, cut, 1.0)


def whole_returns(reward: Any, cut: Any, first: Any, discount: float) -> Any:
    """Return for each step, `[T, E]`, what its whole episode earned in these rows.

    `first` is True where an episode begins; one that is under way at the first row counts from there.
    """
    assert first.shape == reward.shape, "first must be [T, E] as reward is"
    returns = returns_to_go(reward, cut, discount)
    for t in range(1, len(returns)):
        returns[t] = returns[t] * first[t] + returns[t - 1] * ~first[t]
    return returns


def in_numpy(function: Callable[..., Any], *tensors: Any, **settings: Any) -> Any:
    """Return a function's returns of tensors by way of numpy: small steps through time cost torch four times as much.

    They come back on the first tensor's device and in its precision, one or several, without a graph.
    """
    like = tensors[0]
    made = function(*(tensor.detach().cpu().numpy() for tensor in tensors), **settings)
    return tuple(like.new_tensor(x) for x in made) if isinstance(made, tuple) else like.new_tensor(made)


def _from_behind(own: Any, carry: Any) -> Any:
    """Return x with x[t] = own[t] + carry[t] * x[t + 1], written into `own`."""
    for t in range(len(own) - 2, -1, -1):
        own[t] += carry[t] * own[t + 1]
    return own


def _require_alike(**arrays: Any) -> None:
    shapes = {x.shape for x in arrays.values()}
    assert len(shapes) == 1, f"{', '.join(arrays)} must be [T, E] alike, got {shapes}"
