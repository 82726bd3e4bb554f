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
