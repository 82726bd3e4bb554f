"""A3C: asynchronous advantage actor-critic (Mnih et al., 2016), over n steps and for any space of actions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starling import distributions
from starling.errors import check
from starling.losses import masked_mean
from starling.networks import Lstm, Network
from starling.networks.description import Activation
from starling.networks.design import actor_critic, torso_for
from starling.returns import gae
from starling.sight import see, successors
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Batch, Believed, Group, Losses, Nets, Outputs, Place, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class A3cConfig:
    """The knobs of A3C."""

    discount: float = 0.99
    gae_lambda: float = 1.0
    """1: the n-step advantage, n up to the unroll's length; less trusts the value earlier"""
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
        check(0.0 <= self.gae_lambda <= 1.0, f"algorithm.gae_lambda must be in [0, 1], got {self.gae_lambda}")
        check(self.value_cost >= 0.0, f"algorithm.value_cost must be >= 0, got {self.value_cost}")
        check(self.entropy_cost >= 0.0, f"algorithm.entropy_cost must be >= 0, got {self.entropy_cost}")
        check(all(w >= 1 for w in self.hidden), f"algorithm.hidden must be widths >= 1, got {self.hidden}")
        check(abs(self.log_std) <= 20.0, f"algorithm.log_std must be in [-20, 20], got {self.log_std}")
        check(self.memory >= 0, f"algorithm.memory must be >= 0, got {self.memory}")


class A3c:
    """How to act, and what to minimise."""

    def __init__(self, config: A3cConfig) -> None:
        self.config = config

    @property
    def window(self) -> None:
        """Every unroll is learned from once, whole."""
        return None

    def acting(self, spec: Spec) -> Mapping[str, Network]:
        """The policy; with a memory also the value, whose state at an unroll's start only acting can know."""
        networks = self.networks(spec)
        return networks if self.config.memory else {"policy": networks["policy"]}

    def columns(self, spec: Spec) -> Mapping[str, ArraySpec]:
        """Nothing beyond what every step has, and what was possible: it is learned from by those who acted."""
        return distributions.mask_column(spec)

    def explore(self, place: Place) -> NDArray[np.float32]:
        """The policy's own entropy explores, the same in every copy."""
        return np.zeros(place.num_copies, np.float32)

    def act(self, outputs: Outputs, explore: NDArray[np.float32], rng: np.random.Generator) -> Act:
        """Sample the policy; it judges nothing."""
        return Act(distributions.sample(outputs, rng), extras=distributions.mask_in(outputs))

    def greedy(self, outputs: Outputs) -> Array:
        """Return the policy's likeliest action."""
        return distributions.mode(outputs)

    def value(self, outputs: Outputs) -> Array:
        """Return what the critic expects, where it is among the acting networks."""
        value: Array = outputs["value"][..., 0]
        return value

    def priorities(self, windows: Believed) -> Array | None:
        """Nothing is replayed."""
        return None

    def networks(self, spec: Spec) -> Mapping[str, Network]:
        """A policy and a value, in one network or in two."""
        config = self.config
        memory = Lstm(size=config.memory) if config.memory else None
        torso = torso_for(spec, config.hidden, config.activation)
        return actor_critic(spec, torso, memory, config.shared, config.log_std)

    def targets(self) -> Mapping[str, Target]:
        """Nothing follows anything."""
        return {}

    def groups(self) -> Mapping[str, Group]:
        """One loss moves all that there is."""
        return {"a3c": Group(networks=("policy",) if self.config.shared else ("policy", "value"))}

    def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
        """Return the policy's loss by n-step advantages, the value's, and less the entropy."""
        config = self.config
        policy = see(nets, "policy", batch, ends=config.shared)
        critic = policy if config.shared else see(nets, "value", batch)
        value = critic.rows["value"].squeeze(-1)  # [T + 1, B]
        advantage = gae(
            batch.reward,
            value[:-1].detach(),
            successors(batch, value, critic.final["value"].squeeze(-1)),
            discount=config.discount * ~batch.terminated,
            cut=batch.terminated | batch.truncated,
            lam=config.gae_lambda,
        )
        decided = {head: output[:-1] for head, output in policy.rows.items()} | distributions.mask_in(batch.extras)
        log_pi = distributions.log_prob(decided, batch.action)  # [T, B]
        undecided = distributions.entropy(decided)
        # the target is advantage + value, so its error is the advantage, but with a gradient
        error = advantage + value[:-1].detach() - value[:-1]
        parts = {
            "policy": -masked_mean(log_pi * advantage, batch.valid),
            "value": masked_mean(0.5 * error * error, batch.valid),
            "entropy": masked_mean(undecided, batch.valid),
        }
        total = parts["policy"] + config.value_cost * parts["value"] - config.entropy_cost * parts["entropy"]
        return Losses(groups={"a3c": total}, metrics={name: part.detach() for name, part in parts.items()})
