"""Pieces that several algorithms' losses share; by operators and methods only, so they need no import of torch."""

from typing import Any


def huber(error: Any, delta: float) -> Any:
    """Return error²/2 up to `delta` and a line beyond it; delta 0 stands for the square everywhere."""
    if delta == 0.0:
        return 0.5 * error**2
    size = abs(error)
    small = size.clip(max=delta)
    return small * (size - 0.5 * small)


def masked_mean(x: Any, valid: Any) -> Any:
    """Return the mean over the entries that are valid, 0 if none is; both have one shape."""
    assert x.shape == valid.shape, "x and valid must have one shape"
    return (x * valid).sum() / valid.sum().clip(min=1)


def share_of(valid: Any) -> Any:
    """Return the part of each entry in the mean over those that are valid: `(x * share).sum()` is that mean."""
    return valid / valid.sum().clip(min=1)


def normalised(x: Any, share: Any) -> Any:
    """Return x less its mean, by its standard deviation; both are over the entries that have a share."""
    off = x - (x * share).sum()
    off = off - (off * share).sum()  # the first mean is rounded: where all are alike only that would be left of them
    return off / ((off * off * share).sum() ** 0.5 + 1e-8)
