"""The algorithms that ship, by name. A user's own comes by import path, `module:Class`."""

from starling.algorithms.dqn import Dqn, DqnConfig

ALGORITHMS = {"dqn": (DqnConfig, Dqn)}

__all__ = ["ALGORITHMS"]
