"""The `inference` section of a run's configuration: who acts for the actors' copies."""

from dataclasses import dataclass
from typing import Literal

from starling.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig:
    """Whether actors have networks of their own, and if not, who acts for them and how."""

    placement: Literal["local", "central"] = "local"
    """local: every actor has networks of its own; central: processes of this kind act for the copies of many"""
    num: int = 1
    """processes; actor i asks number i modulo this"""
    groups: int = 2
    """of an actor's copies: one steps while the other's question is under way"""
    deadline_s: float = 0.002
    """how long a question waits for those of other actors"""
    max_copies: int = 0
    """that are acted for at once; 0: all that ask"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: numpy for MLPs, for others cuda where there is one"""
    threads: int = 1
    """torch threads; more only where the cores are its own"""

    def __post_init__(self) -> None:
        for name in ("num", "groups", "threads"):
            check(getattr(self, name) >= 1, f"inference.{name} must be >= 1, got {getattr(self, name)}")
        check(self.deadline_s >= 0.0, f"inference.deadline_s must be >= 0, got {self.deadline_s}")
        check(self.max_copies >= 0, f"inference.max_copies must be >= 0, got {self.max_copies}")
