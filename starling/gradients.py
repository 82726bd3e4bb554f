"""What a worker does with its gradient before it is cut into slices."""

from math import isfinite


def clip_factor(norm: float, clip_norm: float) -> float:
    """Return what scales a gradient of this norm down to `clip_norm`, if it is longer; 0: any length will do.

    A norm that is not finite scales nothing, so that whoever applies the gradient still sees what it is.
    """
    return clip_norm / norm if 0.0 < clip_norm < norm and isfinite(norm) else 1.0
