"""The `replay` section of a run's configuration."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from starling.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """What is kept, how it is drawn, and how far learning and acting may run apart."""

    capacity: int = 100_000  # steps, over all shards
    capacity_bytes: int = 0  # over all shards; the smaller of both counts, 0: no limit in bytes
    shards: int = 1
    alpha: float = 0.6  # a window is drawn in proportion to (priority + eps) ** alpha; 0: uniformly
    eps: float = 1e-6
    beta: float = 0.4  # importance weights (size * probability) ** -beta
    beta_final: float = 1.0
    beta_steps: int = 0  # sampled windows from beta to beta_final; 0: it stays at beta
    min_windows: int = 1_000  # inserted before learning starts
    samples_per_insert: float = 2.0  # times that a window is sampled, on average; 0: nobody waits for anybody
    tolerance: int = 0  # windows sampled too many or too few before somebody waits; at least one batch
    durability: Literal["none", "snapshot", "journal"] = "journal"
    """what outlives a shard: nothing; what was written behind its back; all that it acknowledged"""
    fsync_every_s: float = 0.1  # power loss takes what was written since; 0: each insert is forced to the disk
    folder: str = ""  # where the segments of this machine's shards lie; empty: in the run's folder

    def __post_init__(self) -> None:
        rules = {
            "capacity": (self.capacity >= 1, ">= 1"),
            "capacity_bytes": (self.capacity_bytes >= 0, ">= 0"),
            "shards": (1 <= self.shards <= self.capacity, "between 1 and replay.capacity"),
            "alpha": (0.0 <= self.alpha <= 1.0, "in [0, 1]"),
            "eps": (0.0 < self.eps < float("inf"), "> 0"),
            "beta": (0.0 <= self.beta <= 1.0, "in [0, 1]"),
            "beta_final": (0.0 <= self.beta_final <= 1.0, "in [0, 1]"),
            "beta_steps": (self.beta_steps >= 0, ">= 0"),
            "min_windows": (self.min_windows >= 1, ">= 1"),
            "samples_per_insert": (isfinite(self.samples_per_insert) and self.samples_per_insert >= 0.0, ">= 0"),
            "tolerance": (self.tolerance >= 0, ">= 0"),
            "fsync_every_s": (isfinite(self.fsync_every_s) and self.fsync_every_s >= 0.0, ">= 0"),
        }
        for name, (ok, rule) in rules.items():
            check(ok, f"replay.{name} must be {rule}, got {getattr(self, name)}")

    def beta_at(self, sampled: int) -> float:
        """Return beta after so many sampled windows."""
        done = min(1.0, sampled / self.beta_steps) if self.beta_steps else 0.0
        return self.beta + (self.beta_final - self.beta) * done

    def shard_rows(self, row_bytes: int) -> int:
        """Return how many rows of this size each shard keeps: steps, and observations that ended episodes."""
        rows = -(-self.capacity // self.shards)
        if self.capacity_bytes:
            rows = min(rows, self.capacity_bytes // self.shards // row_bytes)
        check(
            rows >= 1,
            f"replay.capacity_bytes must be >= {row_bytes * self.shards} (a row in each shard), "
            f"got {self.capacity_bytes}",
        )
        return rows
