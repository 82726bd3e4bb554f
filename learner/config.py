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
    """of the moments (rmsprop)"""
    centered: bool = True
    """divide by the spread of the gradient, not by its size (rmsprop)"""
    clip_norm: float = 10.0
    """largest norm of a group's gradient; 0: any"""

    def __post_init__(self) -> None:
        check(self.learning_rate > 0.0, f"learner.optimizer.learning_rate must be > 0, got {self.learning_rate}")
        check(self.eps > 0.0, f"learner.optimizer.eps must be > 0, got {self.eps}")
        check(0.0 < self.decay < 1.0, f"learner.optimizer.decay must be in (0, 1), got {self.decay}")
        check(self.clip_norm >= 0.0, f"learner.optimizer.clip_norm must be >= 0, got {self.clip_norm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """What every learner has."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one"""
    threads: int = 1
    """torch threads; more only where the cores are the learner's own"""

    def __post_init__(self) -> None:
        check(self.threads >= 1, f"learner.threads must be >= 1, got {self.threads}")

    @property
    def updates_per_version(self) -> int:
        """Updates from one publication to the next."""
        return 1

    @property
    def annealing_steps(self) -> int:
        """Steps learned from until annealing is at its end; 0: nothing is annealed."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig(LearningConfig):
    """How a learner learns that samples windows."""

    batch_size: int = 64
    """windows per update"""
    batches_per_request: int = 8
    """batches that one round of calls to the shards brings: of each batch a call carries its shard's share alone, so
    more shards want more batches where calls are the bottleneck; every batch more is drawn an update earlier"""
    requests_ahead: int = 2
    """rounds that are under way or waiting to be learned from"""
    publish_every: int = 10
    """updates between versions of the parameters"""

    def __post_init__(self) -> None:
        LearningConfig.__post_init__(self)  # slots: super() would mean the class before they were made
        check(self.batch_size >= 1, f"learner.batch_size must be >= 1, got {self.batch_size}")
        requests = self.batches_per_request
        check(requests >= 1, f"learner.batches_per_request must be >= 1, got {requests}")
        check(self.requests_ahead >= 1, f"learner.requests_ahead must be >= 1, got {self.requests_ahead}")
        check(self.publish_every >= 1, f"learner.publish_every must be >= 1, got {self.publish_every}")

    @property
    def updates_per_version(self) -> int:
        """Updates from one publication to the next."""
        return self.publish_every


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrollLearnerConfig(LearningConfig):
    """How a learner learns from whole unrolls."""

    anneal_env_steps: int = 0
    """steps learned from until the learning rate has gone down to 0, and schedules in a loss to their ends; one that
    is learned from twice counts twice; 0: nothing is annealed"""

    def __post_init__(self) -> None:
        LearningConfig.__post_init__(self)
        check(self.anneal_env_steps >= 0, f"learner.anneal_env_steps must be >= 0, got {self.anneal_env_steps}")

    @property
    def annealing_steps(self) -> int:
        """Steps learned from until annealing is at its end; 0: nothing is annealed."""
        return self.anneal_env_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLearnerConfig(UnrollLearnerConfig):
    """How a learner learns from a queue of unrolls."""

    unrolls: int = 1
    """per update"""
    publish_every: int = 1
    """updates between versions of the parameters"""

    def __post_init__(self) -> None:
        UnrollLearnerConfig.__post_init__(self)
        check(self.unrolls >= 1, f"learner.unrolls must be >= 1, got {self.unrolls}")
        check(self.publish_every >= 1, f"learner.publish_every must be >= 1, got {self.publish_every}")

    @property
    def updates_per_version(self) -> int:
        """Updates from one publication to the next."""
        return self.publish_every


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """What lies between the actors and the learner."""

    capacity: int = 8
    """unrolls that it holds at most; each actor has an equal share of the places"""
    uses: int = 1
    """times that each unroll is learned from"""
    max_lag: int = 0
    """versions that an unroll may be older than the learner's; older ones are dropped and counted; 0: any"""

    def __post_init__(self) -> None:
        check(self.capacity >= 1, f"queue.capacity must be >= 1, got {self.capacity}")
        check(self.uses >= 1, f"queue.uses must be >= 1, got {self.uses}")
        check(self.max_lag >= 0, f"queue.max_lag must be >= 0, got {self.max_lag}")
