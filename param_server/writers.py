"""Which steps of which workers were heard, so that each counts once."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WINDOW = 62  # steps by which one may overtake another; as bits they fit the table's whole numbers


@dataclass(slots=True)
class _Heard:
    generation: int
    newest: int
    seen: int  # bit k: step `newest` - k was heard


class Writers:
    """Hears each (worker, generation, step) once, in whatever order they come, and nobody who was replaced.

    A step more than WINDOW behind its worker's newest one can't be told from a repeated one, and is taken for it.
    """

    def __init__(self) -> None:
        self._heard: dict[int, _Heard] = {}

    def hear(self, worker: int, generation: int, step: int) -> Literal["", "repeated", "fenced"]:
        """Remember a step, or say why it does not count."""
        heard = self._heard.get(worker)
        if heard is None or generation > heard.generation:
            self._heard[worker] = _Heard(generation, step, 1)
            return ""
        if generation < heard.generation:
            return "fenced"
        ahead = step - heard.newest
        if ahead > 0:
            heard.newest, heard.seen = step, _shifted(heard.seen, ahead) | 1
            return ""
        if -ahead >= WINDOW or heard.seen >> -ahead & 1:
            return "repeated"
        heard.seen |= 1 << -ahead
        return ""

    def table(self) -> NDArray[np.int64]:
        """Return a row for each worker: its number, generation, newest step, and which before it were heard."""
        rows = [(worker, heard.generation, heard.newest, heard.seen) for worker, heard in self._heard.items()]
        return np.array(rows, np.int64).reshape(-1, 4)

    def restore(self, table: NDArray[np.int64]) -> None:
        """Remember what `table` says, and nothing else."""
        self._heard = {worker: _Heard(*heard) for worker, *heard in table.tolist()}


def _shifted(seen: int, by: int) -> int:
    return seen << by & (1 << WINDOW) - 1 if by < WINDOW else 0
