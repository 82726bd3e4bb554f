"""What actors without networks ask, and what those who act for them answer."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from starling.types import Array, Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one group of an actor's copies sees: how shall it act?"""

    actor: int
    generation: int
    group: int
    number: int  # counts the questions of a group, over all that its actor begins anew
    obs: Array  # [n, ...]
    fresh: NDArray[np.bool_]  # [n] copies that remember nothing of what was before
    starting: NDArray[np.int64]  # [S] copies whose recurrent state, as it goes into this step, is wanted
    cut: NDArray[np.int64]  # [F] copies whose episode was truncated by the step before
    cut_obs: Array  # [F, ...] what they saw last: its value is wanted
    mask: NDArray[np.bool_] | None = None  # [n, M] actions that are allowed
    newer_than: int = 0  # the version of the parameters that must not act any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How to act. `lost`: those who act have forgotten what this group saw before, and did not act."""

    group: int
    number: int  # of the question
    version: int  # of the parameters that acted
    action: Array  # [n, ...]
    extras: Columns = field(default_factory=dict)  # [n, ...] stored with the step
    taken: Array | None = None  # [n] what is expected of the action, and
    value: Array | None = None  # [n] of the state; of an algorithm that judges
    cut: Array = field(default_factory=lambda: np.empty(0, np.float32))  # [F] what was expected behind a truncation
    starts: Columns = field(default_factory=dict)  # [S, ...] recurrent state by network, as wanted
    lost: bool = False


class ActionSource(Protocol):
    """Where an actor's actions come from; a group has one question under way, a later one takes its place."""

    def ask(self, question: Question) -> None:
        """Send a question; its answer comes through `answers`."""

    def answers(self) -> list[Answer]:
        """Return the answers that have come, without waiting."""

    def waits(self) -> str:
        """Say who must answer."""


def awaited(role: str, questions: Iterable[Question]) -> str:
    """Say who must answer these, and by which parameters."""
    newer_than = max((question.newer_than for question in questions), default=0)
    return f"{role} to act by version {newer_than + 1} of the parameters" if newer_than else f"{role} to act"
