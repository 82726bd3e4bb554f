"""Curves for TensorBoard, in the run's folder."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path


class TensorBoard:
    """Writes event files; tensorboardX hands them to a thread of its own, so a figure costs its caller 55 us."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # half a second: only for a run that begins

        self._writer = SummaryWriter(logdir=str(folder))

    def add(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Record figures at this count of steps; what is not finite has no place on a curve."""
        for tag, value in scalars.items():
            if isfinite(value):
                self._writer.add_scalar(tag, value, env_steps)

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()
