"""What a runtime reports while it makes a run: to whoever records it (`cluster.reporter`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starling.params import Params
from starling.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Every role's counters at one moment; the runtime takes one about once a second, and one at the end."""

    elapsed_s: float
    env_steps: int
    updates: int
    roles: Mapping[str, Mapping[str, Any]]  # "actor[0]", "replay_server[1]", "learner": its Meter's snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodesEnded:
    """Training episodes of one actor, explored ones included."""

    elapsed_s: float
    env_steps: int
    actor: int
    returns: Sequence[float]
    lengths: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationDone:
    """Greedy, held-out episodes of one version."""

    elapsed_s: float
    version: int
    updates: int
    env_steps: int
    mean: float
    std: float
    episodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDue:
    """Something to keep: the run as it stands, or the parameters alone of the `best` evaluation so far."""

    elapsed_s: float
    version: int
    updates: int
    env_steps: int
    params: Params
    best: bool
    mean: float | None = None  # of its evaluation
    number: int = 0  # of the checkpoint, from 1; 0: parameters alone
    best_mean: float | None = None  # of the run so far
    states: Mapping[str, State] = field(default_factory=dict)  # by name, all that the run needs to go on; or nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something to remember that happens rarely: `what` in a word or two, and the facts."""

    elapsed_s: float
    what: str
    facts: Mapping[str, Any]


Event = Sample | EpisodesEnded | EvaluationDone | CheckpointDue | Noted


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: at its goal, with its budget spent, as it was asked to, or by a signal."""

    reason: Literal["goal", "budget", "asked", "interrupted"]
    env_steps: int
    updates: int
    train_s: float
    params_sha256: str
    best_mean: float | None
