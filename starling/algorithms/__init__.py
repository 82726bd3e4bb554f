"""The algorithms that ship, by name."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from starling.algorithms.dqn import Dqn, DqnConfig
from starling.types import Algorithm

Topology = Literal["replay", "queue", "lockstep", "gradients"]


class Choice(NamedTuple):
    """An algorithm's type of settings, what makes the algorithm from them, and where unrolls go for it to learn."""

    config: type[Any]
    build: Callable[[Any], Algorithm]
    topology: Topology


ALGORITHMS = {"dqn": Choice(DqnConfig, Dqn, "replay")}

__all__ = ["ALGORITHMS", "Choice", "Topology"]
