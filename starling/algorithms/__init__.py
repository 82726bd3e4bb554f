"""The algorithms that ship, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from starling.algorithms.dqn import Dqn, DqnConfig
from starling.types import Algorithm


class Choice(NamedTuple):
    """An algorithm's type of settings, and what makes the algorithm from them."""

    config: type[Any]
    build: Callable[[Any], Algorithm]


ALGORITHMS = {"dqn": Choice(DqnConfig, Dqn)}

__all__ = ["ALGORITHMS", "Choice"]
