"""Returns, by operators only, so that the same lines serve an actor's arrays and a learner's tensors."""

from typing import Any


def n_step(reward: Any, terminated: Any, valid: Any, discount: float) -> tuple[Any, Any]:
    """Return each window's discounted reward, and the factor of the value behind its last valid step.

    All inputs are `[L, W]`. The factor is discount ** steps, and zero where the window ended by termination;
    truncation leaves it, so a truncated window bootstraps from the observation stored after its last step.
    """
    assert reward.shape == terminated.shape == valid.shape, "reward, terminated and valid must be [L, W] alike"
    total = 0.0 * reward[0]
    factor, decay = total + 1.0, total + discount  # arrays of reward's own precision
    for t in range(len(reward)):
        total = total + factor * valid[t] * reward[t]
        factor = factor * (1.0 + valid[t] * (decay * ~terminated[t] - 1.0))
    return total, factor
