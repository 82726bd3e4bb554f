"""A3C: asynchronous advantage actor-critic (Mnih et al., 2016), over n steps and for any space of actions."""

from dataclasses import dataclass

from starling import distributions
from starling.algorithms.policies import PolicyConfig, WithPolicy
from starling.errors import check
from starling.losses import masked_mean
from starling.returns import gae
from starling.sight import see, successors
from starling.types import Batch, Losses, Nets


@dataclass(frozen=True, slots=True, kw_only=True)
class A3cConfig(PolicyConfig):
    """The knobs of A3C."""

    gae_lambda: float = 1.0
    """1: the n-step advantage, n up to the unroll's length; less trusts the value earlier"""

    def __post_init__(self) -> None:
        PolicyConfig.__post_init__(self)  # slots: super() would mean the class before they were made
        check(0.0 <= self.gae_lambda <= 1.0, f"algorithm.gae_lambda must be in [0, 1], got {self.gae_lambda}")


class A3c(WithPolicy):
    """How to act, and what to minimise."""

    keeps_mu = False
    group = "a3c"

    def __init__(self, config: A3cConfig) -> None:
        super().__init__(config)
        self.config = config

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
