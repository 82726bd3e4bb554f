"""The `params` section of a run's configuration: how the slices of the parameters follow gradients."""

from dataclasses import dataclass
from typing import Literal

from starling.errors import check

OptimizerKind = Literal["a3c_rmsprop", "rmsprop", "adam", "sgd"]
DEFAULT_EPS = {"a3c_rmsprop": 0.1}
USUAL_EPS = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceConfig:
    """How many slices there are, what moves them, and what becomes of gradients that come late."""

    slices: int = 1
    optimizer: OptimizerKind = "a3c_rmsprop"
    """a3c_rmsprop: shared, with eps inside the root (Mnih et al., 2016); the others as torch's; rmsprop not centred"""
    learning_rate: float = 1e-3
    decay: float = 0.99
    """of the second moment (a3c_rmsprop, rmsprop)"""
    beta_1: float = 0.9
    """decay of the first moment (adam)"""
    beta_2: float = 0.999
    """decay of the second moment (adam)"""
    eps: float | None = None
    """none: 0.1 for a3c_rmsprop, else 1e-8"""
    momentum: float = 0.0
    """(sgd)"""
    clip_norm: float = 40.0
    """largest norm of a worker's whole gradient, clipped before it is cut; 0: any"""
    anneal_env_steps: int = 0
    """env steps of all workers after which the learning rate has fallen to 0; 0: it is constant"""
    staleness: Literal["accept", "damp", "drop"] = "accept"
    """of a gradient `lag` versions old: apply it, at a learning rate of 1 / (1 + lag), or only up to max_lag"""
    max_lag: int = 16
    """versions (drop)"""

    def __post_init__(self) -> None:
        rules = {
            "slices": (self.slices >= 1, ">= 1"),
            "learning_rate": (0.0 < self.learning_rate < float("inf"), "> 0"),
            "decay": (0.0 < self.decay < 1.0, "in (0, 1)"),
            "beta_1": (0.0 <= self.beta_1 < 1.0, "in [0, 1)"),
            "beta_2": (0.0 < self.beta_2 < 1.0, "in (0, 1)"),
            "eps": (self.eps is None or 0.0 < self.eps < float("inf"), "> 0 or none"),
            "momentum": (0.0 <= self.momentum < 1.0, "in [0, 1)"),
            "clip_norm": (0.0 <= self.clip_norm < float("inf"), ">= 0"),
            "anneal_env_steps": (self.anneal_env_steps >= 0, ">= 0"),
            "max_lag": (self.max_lag >= 0, ">= 0"),
        }
        for name, (ok, rule) in rules.items():
            check(ok, f"params.{name} must be {rule}, got {getattr(self, name)}")

    @property
    def epsilon(self) -> float:
        """What keeps the second moment's root from zero."""
        return DEFAULT_EPS.get(self.optimizer, USUAL_EPS) if self.eps is None else self.eps

    def rate_at(self, env_steps: int) -> float:
        """Return the learning rate after so many env steps of all workers."""
        done = min(1.0, env_steps / self.anneal_env_steps) if self.anneal_env_steps else 0.0
        return self.learning_rate * (1.0 - done)

    def weight_of(self, lag: int) -> float:
        """Return the part of the learning rate by which a gradient so many versions old counts; 0: it is dropped."""
        if self.staleness == "damp":
            return 1.0 / (1.0 + lag)
        return 0.0 if self.staleness == "drop" and lag > self.max_lag else 1.0
