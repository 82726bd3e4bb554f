"""What travels between the roles, and the Protocols by which they know one another.

Arrays are numpy on the wire and in actors and servers; the learner's `Batch` holds tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from starling.params import Params
from starling.spec import ArraySpec, Spec
from starling.windows import Window

Array = NDArray[Any]
Columns = dict[str, Array]
STEPS = "=>"  # no column's name
Outputs = Mapping[str, Array]
"""What a forward pass returns, by head: each `[E, ...]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unroll:
    """Up to `T` consecutive steps of one actor's `E` copies; every column is `[T, E, ...]`.

    Always there: `obs`, `action`, `reward`, `terminated`, `truncated`, `version` (of the parameters that acted),
    `acted` (False for an autoreset step, which is no transition) and `age` (steps of the episode before this row);
    an algorithm adds its extras. The observation after step (t, e) is `final_obs` where the episode ended there,
    else row t + 1; after the last row it is the first row of the next `sequence`, or `next_obs`.
    """

    actor: int
    generation: int
    sequence: int  # counts this generation's unrolls without gaps
    columns: Columns
    final_at: NDArray[np.int64]  # [F] t * E + e of each step that ended an episode, ascending
    final_obs: Array  # [F, ...]
    next_obs: Array | None = None  # [E, ...] only for the algorithms that learn from whole unrolls
    priorities: NDArray[np.float32] | None = None
    """[carried + T, E], by the first step of a window, the last `carried` rows of the previous unroll first.

    NaN where this unroll completes no window. None: new windows get the largest priority seen.
    """
    episodes: Columns = field(default_factory=dict)  # `return`, `length`, custom metrics: each [episodes ended here]
    start_at: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """[S] t * E + e, ascending, of each real step at which a window may begin, if the networks are recurrent.

    For an algorithm that learns from whole unrolls: of the first row, every copy.
    """
    starts: Columns = field(default_factory=dict)
    """[S, ...] the recurrent state that went into those steps, by network"""

    @property
    def num_steps(self) -> int:
        """Real steps, autoreset rows left out."""
        return int(np.count_nonzero(self.columns["acted"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Windows (or unrolls) stacked time-major for one update; tensors on the learner's device.

    `obs` is `[L + 1, B, ...]`, or `[2, B, ...]` when the window serves only its ends. `obs[-1]` is the observation
    after the last *valid* step, also where an episode's end made the window shorter; but with a frame stack and every
    observation that one is at `obs[valid.sum(0)]` alone, since behind it the stacks fill with its last frame.
    """

    obs: Any
    action: Any  # [L, B, ...]
    reward: Any  # [L, B]
    terminated: Any  # [L, B] bool
    truncated: Any  # [L, B] bool
    valid: Any  # [L, B] bool, False behind an episode's end
    weights: Any  # [B] importance weights
    version: Any  # [L, B] parameters that acted
    extras: Mapping[str, Any] = field(default_factory=dict)  # [L, B, ...] what the algorithm stored
    starts: Mapping[str, Any] = field(default_factory=dict)
    """[B, ...] recurrent state at the first row, by network"""
    first: Any = None  # [L + 1, B] bool, True where an episode begins; only of whole unrolls, as the two below
    final_at: Any = None  # [F] t * B + b of each step that ended an episode, ascending
    final_obs: Any = None  # [F, ...] the observations after them: what a truncated step bootstraps from
    progress: float = 0.0  # from 0 to 1, how far the learner's annealing is: for schedules that belong to a loss


class Act(NamedTuple):
    """What the actor does with the outputs of its networks, per copy."""

    action: Array  # [E, ...]; a bounded box is [-1, 1], to which the environment's edge clips, and scales it
    extras: Columns  # [E, ...] stored with the step
    taken: Array | None = None
    """[E] the value that the actor gives to this action; None: it judges nothing, and gives no priorities"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Believed:
    """Windows as their actor saw them, for priorities without a second forward pass."""

    reward: Array  # [L, W]
    terminated: Array  # [L, W] bool
    valid: Array  # [L, W] bool
    taken: Array  # [L, W] value of the action taken
    value: Array  # [L + 1, W] value of the state; the last valid row's successor is at [steps]
    steps: NDArray[np.intp]  # [W] valid steps of each window


class Place(NamedTuple):
    """Where a vector of copies stands among all actors: what a ladder of exploration needs."""

    actor: int
    num_actors: int
    num_copies: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Networks that one optimizer moves to make the loss of the same name smaller."""

    networks: tuple[str, ...]
    every: int = 1  # updates
    learning_rate: float | None = None  # None: the learner's


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A network that follows another: every `every` updates it goes the part `tau` of the way; 1 is a copy."""

    of: str
    every: int = 1  # updates
    tau: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What `Algorithm.losses` returns: a scalar by group, new priorities, and figures to show."""

    groups: Mapping[str, Any]
    priorities: Any | None = None  # [B]
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Nets(Protocol):
    """The learner's networks as an algorithm's losses see them."""

    def __getitem__(self, name: str) -> Any:
        """Return the module of this name: observations in, a dict of heads out."""

    def frozen(self, name: str, *inputs: Any) -> Any:
        """Return the module's outputs without a graph: for targets."""

    def observe(self, name: str, head: str, values: Any) -> None:
        """Merge rows `[..., outputs]` into the running moments of a head; not before the backward pass."""


class Optimizing(Protocol):
    """The learner's optimizers as an algorithm's own update sees them."""

    def step(self, losses: Mapping[str, Any]) -> bool:
        """Take one step per group that is due; False, having moved nothing, if anything is not finite."""


class Acting(Protocol):
    """The half of an algorithm that actors use: numpy in, numpy out, no torch."""

    @property
    def window(self) -> Window | None:
        """What the replay serves; None: the algorithm learns from whole unrolls."""

    def acting(self, spec: Spec) -> Mapping[str, Any]:
        """Describe the networks that actors need, by name (`starling.networks.Network`)."""

    def columns(self, spec: Spec) -> Mapping[str, ArraySpec]:
        """Say what is stored with each step beyond the columns that always are."""

    def explore(self, place: Place) -> NDArray[np.float32]:
        """Return each copy's strength of exploration, `[E]`."""

    def act(self, outputs: Outputs, explore: NDArray[np.float32], rng: np.random.Generator) -> Act:
        """Choose an action per copy."""

    def greedy(self, outputs: Outputs) -> Array:
        """Return the actions without exploration."""

    def value(self, outputs: Outputs) -> Array:
        """Return what the actor expects from each state, `[E]`."""

    def priorities(self, windows: Believed) -> Array | None:
        """Return the priority of each window, or None to let the shard use the largest seen."""


class Algorithm(Acting, Protocol):
    """All of an algorithm; see docs/decisions/0001-contracts.md. The losses use methods of tensors only."""

    def networks(self, spec: Spec) -> Mapping[str, Any]:
        """Describe every network by name; those of `acting` first, targets left out."""

    def targets(self) -> Mapping[str, Target]:
        """Say which networks follow which."""

    def groups(self) -> Mapping[str, Group]:
        """Say which loss moves which networks."""

    def losses(self, nets: Nets, batch: Batch, rng: Any) -> Losses:
        """Return the losses of a batch; `rng` is a torch.Generator."""


@runtime_checkable
class Updating(Protocol):
    """An algorithm that makes more of a batch than one step on its losses: epochs of minibatches, a line search."""

    def update(self, nets: Nets, optimizers: Optimizing, batch: Batch, rng: Any) -> Losses | None:
        """Learn all there is to learn from a batch, and return the last losses; None if nothing of it was finite."""


class Progress(NamedTuple):
    """What one `step()` of a loop role did: work by kind, or the reason why it waits."""

    work: Mapping[str, int] = {}
    waits: str = ""  # "actor[0] waits for insert credit from replay_server[1]"


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertReply:
    """A shard's or a queue's answer to an unroll."""

    credit: int  # windows that this shard, or unrolls that this queue, still takes; at 0 the writer waits
    accepted: bool = True  # False: refused as a duplicate or by fencing
    waits: str = ""  # for what, if there is no credit for another reason than the samples-per-insert account
    ask_after_s: float = 0.0  # how long it makes no sense to ask for credit again; 0: the writer's own habit


class Room(NamedTuple):
    """How much more a server takes from one writer, as it says when it is asked; the fields are InsertReply's."""

    credit: int
    waits: str = ""
    ask_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """What the learner asks of one shard in one call."""

    counts: Sequence[int]  # windows for each of the batches
    keys: NDArray[np.int64]  # windows whose priorities changed since the last call
    priorities: NDArray[np.float64]
    insert_limit: int  # windows that may have been inserted into this shard in all, by the global account
    largest_priority: float = 1.0  # that the learner has seen, over all shards
    generation: int = 0  # of the learner: a shard that has heard a successor answers its predecessors with nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReply:
    """A shard's answer: windows of all batches behind one another, and the state that they were drawn from.

    Those of a batch come in the order in which they lie in the shard.
    """

    counts: Sequence[int]  # as asked, or all 0 while the shard is empty
    windows: Columns  # the columns, those that are small as records under `STEPS`
    keys: NDArray[np.int64]  # [n]
    probabilities: NDArray[np.float64]  # [n] within this shard
    mass: float
    size: int  # windows that could have been drawn
    inserted: int  # windows inserted since the shard began
    origin: int = 0  # tells a shard from one that took its place: their keys differ
    starts: Columns = field(default_factory=dict)  # [n, ...] recurrent state at the windows' starts

    @property
    def columns(self) -> Columns:
        """Time-major [L, n, ...], `obs` as the window says; `valid` [L, n], with a burn-in also `learn`."""
        return spread(self.windows)


def spread(windows: Columns) -> Columns:
    """Return all columns by name; those that lie in records are views of them."""
    steps = windows.get(STEPS)
    if steps is None:
        return windows
    apart = {name: column for name, column in windows.items() if name != STEPS}
    return {name: steps[name] for name in steps.dtype.names or ()} | apart


class Ticket(NamedTuple):
    """Which windows a batch was made of, so that their priorities find the way back."""

    shards: NDArray[np.int64]  # [B]
    keys: NDArray[np.int64]  # [B]


class Sampled(NamedTuple):
    """One batch of windows, drawn as if from one big tree."""

    columns: Columns  # as in SampleReply
    weights: NDArray[np.float32]  # [B] importance weights
    ticket: Ticket
    starts: Mapping[str, Array] = MappingProxyType({})  # as in SampleReply


class WindowSource(Protocol):
    """Where the learner's batches come from, however many shards are behind it."""

    def take(self) -> Sampled | str:
        """Return the next batch, or the reason why there is none yet."""

    def update_priorities(self, ticket: Ticket, priorities: NDArray[np.float64]) -> None:
        """Set the priorities of a batch's windows; they travel with a later request."""


class UnrollSource(Protocol):
    """Where a learner of whole unrolls gets them: a bounded queue, or one unroll of each actor."""

    def take(self, version: int) -> list[Unroll] | str:
        """Return the next update's unrolls for a learner at this version, or the reason why there are none."""


class ReplaySink(Protocol):
    """Where an actor's unrolls go."""

    def insert(self, unroll: Unroll) -> None:
        """Send one unroll."""

    def must_wait(self) -> str:
        """Say whom the actor must wait for before it plays on; empty: for nobody."""


class ReplaySource(Protocol):
    """Where a learner's windows come from: every shard, each with its own requests in flight."""

    @property
    def num_shards(self) -> int:
        """How many shards there are."""

    def request(self, shard: int, request: SampleRequest) -> None:
        """Ask one shard; the answer comes through `replies`, in the order of the requests to that shard."""

    def replies(self) -> list[tuple[int, SampleReply | None]]:
        """Return the answers that have come since the last call, without waiting; None for one that never will."""


class ParamSource(Protocol):
    """Where parameters are read."""

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        """Return `(version, params)`, or None if there is nothing newer."""


class ParamSink(Protocol):
    """Where parameters are published."""

    def publish(self, version: int, params: Params) -> None:
        """Replace the parameters by a newer version."""
