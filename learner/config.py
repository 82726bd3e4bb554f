"""The learner's settings; importing them loads no torch."""

from dataclasses import dataclass, field
from typing import Literal

from starling.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How gradients become steps."""

    kind: Literal["adam", "rmsprop", "sgd"] = "adam"
    learning_rate: float = 1e-3
    eps: float = 1e-8
    """added to the root of the second moment (adam, rmsprop)"""
    decay: float = 0.95
    """of the second moment (rmsprop, centered)"""
    clip_norm: float = 10.0
    """largest norm of a group's gradient; 0: any"""

    def __post_init__(self) -> None:
        check(self.learning_rate > 0.0, f"learner.optimizer.learning_rate must be > 0, got {self.learning_rate}")
        check(self.eps > 0.0, f"learner.optimizer.eps must be > 0, got {self.eps}")
        check(0.0 < self.decay < 1.0, f"learner.optimizer.decay must be in (0, 1), got {self.decay}")
        check(self.clip_norm >= 0.0, f"learner.optimizer.clip_norm must be >= 0, got {self.clip_norm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """How the learner learns."""

    batch_size: int = 64
    """windows per update"""
    batches_per_request: int = 8
    """batches that one round of calls to the shards brings: of each batch a call carries its shard's share alone, so
    more shards want more batches where calls are the bottleneck; every batch more is drawn an update earlier"""
    requests_ahead: int = 2
    """rounds that are under way or waiting to be learned from"""
    publish_every: int = 10
    """updates between versions of the parameters"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one"""
    threads: int = 1
    """torch threads; more only where the cores are the learner's own"""

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, f"learner.batch_size must be >= 1, got {self.batch_size}")
        requests = self.batches_per_request
        check(requests >= 1, f"learner.batches_per_request must be >= 1, got {requests}")
        check(self.requests_ahead >= 1, f"learner.requests_ahead must be >= 1, got {self.requests_ahead}")
        check(self.publish_every >= 1, f"learner.publish_every must be >= 1, got {self.publish_every}")
        check(self.threads >= 1, f"learner.threads must be >= 1, got {self.threads}")
