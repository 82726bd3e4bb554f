"""What all algorithms share that learn a policy from whole unrolls: its networks, their settings, and how to act."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from starling import distributions
from starling.errors import check
from starling.networks import Lstm, Network
from starling.networks.description import Activation
from starling.networks.design import actor_critic, torso_for
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Believed, Group, Outputs, Place, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """The knobs of a policy and of the value beside it, whatever moves them."""

    discount: float = 0.99
    value_cost: float = 0.5
    entropy_cost: float = 0.01
    shared: bool = False
    """policy and value are two heads of one network; otherwise two networks"""
    hidden: tuple[int, ...] = (64, 64)
    """widths of the layers over vector observations; frames get the Nature CNN"""
    activation: Activation = "tanh"
    memory: int = 0
    """width of an LSTM behind the layers; 0: none"""
    log_std: float = 0.0
    """what the spread of a continuous policy begins with, as a logarithm"""

    def __post_init__(self) -> None:
        check(0.0 <= self.discount <= 1.0, f"algorithm.discount must be in [0, 1], got {self.discount}")
        check(self.value_cost >= 0.0, f"algorithm.value_cost must be >= 0, got {self.value_cost}")
        check(self.entropy_cost >= 0.0, f"algorithm.entropy_cost must be >= 0, got {self.entropy_cost}")
        check(all(w >= 1 for w in self.hidden), f"algorithm.hidden must be widths >= 1, got {self.hidden}")
        check(self.memory >= 0, f"algorithm.memory must be >= 0, got {self.memory}")
        check(abs(self.log_std) <= 20.0, f"algorithm.log_std must be in [-20, 20], got {self.log_std}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerPolicyConfig(PolicyConfig):
    """The same where a learner sees every unroll, and so can keep statistics of them."""

    normalise_obs: bool = False
    """show the networks vector observations less their running mean, by their running deviation"""


class WithPolicy:
    """All of such an algorithm but its losses.

    A base class where algorithms otherwise share functions: see docs/decisions/0007-with-policy.md.
    """

    keeps_mu: ClassVar[bool]
    """Whether each step says how likely its action was to those who took it: for ratios to a later policy"""
    group: ClassVar[str]
    """The one loss, which moves all networks"""

    def __init__(self, config: PolicyConfig) -> None:
        self._policy = config

    @property
    def window(self) -> None:
        """Unrolls are learned from whole."""
        return None

    def acting(self, spec: Spec) -> Mapping[str, Network]:
        """The policy; with a memory also the value, whose state at an unroll's start only acting can know."""
        networks = self.networks(spec)
        return networks if self._policy.memory else {"policy": networks["policy"]}

    def columns(self, spec: Spec) -> Mapping[str, ArraySpec]:
        """What was possible, and how likely the action was to those who took it."""
        mu = {"log_mu": ArraySpec((), "float32")} if self.keeps_mu else {}
        return {**mu, **distributions.mask_column(spec)}

    def explore(self, place: Place) -> NDArray[np.float32]:
        """The policy's own entropy explores, the same in every copy."""
        return np.zeros(place.num_copies, np.float32)

    def act(self, outputs: Outputs, explore: NDArray[np.float32], rng: np.random.Generator) -> Act:
        """Sample the policy; it judges nothing."""
        if not self.keeps_mu:
            return Act(distributions.sample(outputs, rng), extras=distributions.mask_in(outputs))
        action, log_mu = distributions.sample_judged(outputs, rng)
        return Act(action, extras={"log_mu": log_mu, **distributions.mask_in(outputs)})

    def greedy(self, outputs: Outputs) -> Array:
        """Return the policy's likeliest action."""
        return distributions.mode(outputs)

    def value(self, outputs: Outputs) -> Array:
        """Return what the critic expects, where it is among the acting networks."""
        value: Array = outputs["value"][..., 0]
        return value

    def priorities(self, windows: Believed) -> Array | None:
        """Nothing is replayed by priority."""
        return None

    def networks(self, spec: Spec) -> Mapping[str, Network]:
        """A policy and a value, in one network or in two."""
        config = self._policy
        normalise = isinstance(config, LearnerPolicyConfig) and config.normalise_obs
        memory = Lstm(size=config.memory) if config.memory else None
        torso = torso_for(spec, config.hidden, config.activation, normalise)
        return actor_critic(spec, torso, memory, config.shared, config.log_std)

    def targets(self) -> Mapping[str, Target]:
        """Nothing follows anything."""
        return {}

    def groups(self) -> Mapping[str, Group]:
        """One loss moves all that there is."""
        return {self.group: Group(networks=("policy",) if self._policy.shared else ("policy", "value"))}
