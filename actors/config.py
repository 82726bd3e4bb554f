"""The `actor` section of a run's configuration, for each way of learning from what actors play."""

from dataclasses import dataclass

from starling.errors import check

MAX_UNTOLD = 4_096  # unrolls whose episodes wait to be asked for; of a supervisor that is gone, the newest stay


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayConfig:
    """How many actors there are and how each of them plays."""

    num: int = 1
    """actors"""
    unroll_length: int = 16
    """steps of every copy between two looks at the parameters"""

    def __post_init__(self) -> None:
        check(self.num >= 1, f"actor.num must be >= 1, got {self.num}")
        check(self.unroll_length >= 1, f"actor.unroll_length must be >= 1, got {self.unroll_length}")
