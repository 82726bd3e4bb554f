"""IMPALA: policy gradient on steps that older policies took, corrected by V-trace (Espeholt et al., 2018)."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from starling import distributions
from starling.algorithms.policies import LearnerPolicyConfig, WithPolicy
from starling.errors import check
from starling.losses import share_of
from starling.returns import Corrected, in_numpy, vtrace
from starling.sight import see, successors
from starling.types import Batch, Losses, Nets


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpalaConfig(LearnerPolicyConfig):
    """The knobs of IMPALA."""

    rho_bar: float = 1.0
    """largest weight of a temporal difference: with less, the value is that of a policy nearer to those who acted"""
    c_bar: float = 1.0
    """largest weight in a trace: how fast the value learns, not what it learns"""
    pg_rho_bar: float = 1.0
    """largest weight of a step in the policy's loss"""
    lam: float = 1.0
    """1: traces up to the unroll's end; less trusts the value earlier"""

    def __post_init__(self) -> None:
        LearnerPolicyConfig.__post_init__(self)  # slots: super() would mean the class before they were made
        for name in ("rho_bar", "c_bar", "pg_rho_bar"):
            bar = getattr(self, name)
            check(bar > 0.0 and isfinite(bar), f"algorithm.{name} must be > 0 and finite, got {bar}")
        check(0.0 <= self.lam <= 1.0, f"algorithm.lam must be in [0, 1], got {self.lam}")


class Impala(WithPolicy):
    """How to act, and what to minimise."""

    keeps_mu = True
    group = "impala"

    def __init__(self, config: ImpalaConfig) -> None:
        super().__init__(config)
        self.config = config

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
