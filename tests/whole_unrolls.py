"""Short runs of the topologies in which unrolls are learned from whole."""

from typing import Any

from cluster.config import Config, load
from starling.config import Layer

PRESETS = {"queue": "cartpole-impala", "lockstep": "cartpole-a2c"}
SMALL: dict[str, Any] = {
    "env": {"copies": 2},
    "actor": {"num": 2, "unroll_length": 5},
    "inference": {"placement": "local"},
    "evaluator": {"episodes": 2, "copies": 2, "every": 10},
    "goal": {"total_steps": 500},
    "checkpoint": {"every": 8},
}


def short(topology: str, **over: Any) -> Config[Any]:
    """Five hundred steps of CartPole, ten or a few less in each unroll."""
    return load(PRESETS[topology], (), Layer("test", {"runtime": "local", **SMALL, **over}))
