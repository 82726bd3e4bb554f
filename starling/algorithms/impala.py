"""IMPALA: policy gradient on steps that older policies took, corrected by V-trace (Espeholt et al., 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starling import distributions
from starling.errors import check
from starling.losses import share_of
from starling.networks import Lstm, Network
from starling.networks.description import Activation
from starling.networks.design import actor_critic, torso_for
from starling.returns import Corrected, in_numpy, vtrace
from starling.sight import see, successors
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Batch, Believed, Group, Losses, Nets, Outputs, Place, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpalaConfig:
    """The knobs of IMPALA."""

    discount: float = 0.99
    rho_bar: float = 1.0
    """largest weight of a temporal difference: with less, the value is that of a policy nearer to those who acted"""
    c_bar: float = 1.0
    """largest weight in a trace: how fast the value learns, not what it learns"""
    pg_rho_bar: float = 1.0
    """largest weight of a step in the policy's loss"""
    lam: float = 1.0
    """1: traces up to the unroll's end; less trusts the value earlier"""
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
    normalise_obs: bool = False
    """vector observations less their running mean, in running deviations"""

    def __post_init__(self) -> None:
        check(0.0 <= self.discount <= 1.0, f"algorithm.discount must be in [0, 1], got {self.discount}")
        for name in ("rho_bar", "c_bar", "pg_rho_bar"):
            bar = getattr(self, name)
            check(bar > 0.0 and isfinite(bar), f"algorithm.{name} must be > 0 and finite, got {bar}")
        check(0.0 <= self.lam <= 1.0, f"algorithm.lam must be in [0, 1], got {self.lam}")
        check(self.value_cost >= 0.0, f"algorithm.value_cost must be >= 0, got {self.value_cost}")
        check(self.entropy_cost >= 0.0, f"algorithm.entropy_cost must be >= 0, got {self.entropy_cost}")
        check(all(w >= 1 for w in self.hidden), f"algorithm.hidden must be widths >= 1, got {self.hidden}")
        check(abs(self.log_std) <= 20.0, f"algorithm.log_std must be in [-20, 20], got {self.log_std}")
        check(self.memory >= 0, f"algorithm.memory must be >= 0, got {self.memory}")


class Impala:
    """How to act, and what to minimise."""

    def __init__(self, config: ImpalaConfig) -> None:
        self.config = config

    @property
    def window(self) -> None:
        """Unrolls are learned from whole."""
        return None

    def acting(self, spec: Spec) -> Mapping[str, Network]:
        """The policy; with a memory also the value, whose state at an unroll's start only acting can know."""
        networks = self.networks(spec)
        return networks if self.config.memory else {"policy": networks["policy"]}

    def columns(self, spec: Spec) -> Mapping[str, ArraySpec]:
        """How likely the action was to those who took it, and what was possible."""
        return {"log_mu": ArraySpec((), "float32"), **distributions.mask_column(spec)}

    def explore(self, place: Place) -> NDArray[np.float32]:
        """The policy's own entropy explores, the same in every copy."""
        return np.zeros(place.num_copies, np.float32)

    def act(self, outputs: Outputs, explore: NDArray[np.float32], rng: np.random.Generator) -> Act:
        """Sample the policy, and keep how likely the action was; it judges nothing."""
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
        config = self.config
        memory = Lstm(size=config.memory) if config.memory else None
        torso = torso_for(spec, config.hidden, config.activation, config.normalise_obs)
        return actor_critic(spec, torso, memory, config.shared, config.log_std)

    def targets(self) -> Mapping[str, Target]:
        """Nothing follows anything."""
        return {}

    def groups(self) -> Mapping[str, Group]:
        """One loss moves all that there is."""
        return {"impala": Group(networks=("policy",) if self.config.shared else ("policy", "value"))}

    def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
        """Return the policy's loss by V-trace, the value's, and less the entropy: means over the steps, not sums."""
        config = self.config
        policy = see(nets, "policy", batch, ends=config.shared)
        critic = policy if config.shared else see(nets, "value", batch)
        value = critic.rows["value"].squeeze(-1)  # [T + 1, B]
        after = successors(batch, value, critic.final["value"].squeeze(-1))
        decided = {head: output[:-1] for head, output in policy.rows.items()} | distributions.mask_in(batch.extras)
        log_pi, undecided = distributions.judge(decided, batch.action)  # [T, B]
        ratio = (log_pi.detach() - batch.extras["log_mu"]).exp()
        targets, advantages = self._corrected(ratio, batch, value[:-1].detach(), after)
        error = targets - value[:-1]
        parts = {"policy": -log_pi * advantages, "value": 0.5 * error * error, "entropy": undecided}
        loss = parts["policy"] + config.value_cost * parts["value"] - config.entropy_cost * parts["entropy"]
        share = share_of(batch.valid)
        told = {**parts, "rho": ratio, "clipped": ratio > config.rho_bar}
        metrics = {name: (each.detach() * share).sum() for name, each in told.items()}
        return Losses(groups={"impala": (loss * share).sum()}, metrics=metrics)

    def _corrected(self, ratio: Any, batch: Batch, value: Any, after: Any) -> Corrected:
        config = self.config
        return Corrected(
            *in_numpy(
                vtrace,
                ratio,
                batch.reward,
                value,
                after,
                config.discount * ~batch.terminated,
                batch.terminated | batch.truncated,
                lam=config.lam,
                rho_bar=config.rho_bar,
                c_bar=config.c_bar,
                pg_rho_bar=config.pg_rho_bar,
            )
        )
