"""Policy gradients of one step for each batch: plain, REINFORCE (Williams, 1992), one-step actor-critic, A2C.

All of them make likelier what turned out well. They differ in what "well" is measured by:

- `returns = "whole"`: what the whole episode earned, the same for each of its steps;
- `"to_go"`: what was earned from a step on (REINFORCE); with `baseline`, less what was expected there;
- `"bootstrapped"`: the same over n steps, and what is expected after them (lambda 0: after one). The last n ends with
  the unroll.

Only the third knows a value to go on with where an unroll, or a time limit, cuts an episode off. The other two count
what is in the unroll and nothing else: neither what an episode earned before the first row, nor what it would have
earned after the last, or after a truncation. So no step is left out, and their gradient is that of what each episode
is expected to earn in the rows that are left to it (but for the discount of later steps, left out as usual). To leave
out the steps of episodes that are cut would be worse than it sounds: short episodes stay, and ending soon is rewarded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from starling import distributions
from starling.algorithms.policies import LearnerPolicyConfig, WithPolicy
from starling.errors import check
from starling.losses import normalised, share_of
from starling.networks import Network
from starling.returns import in_numpy, lambda_returns, returns_to_go, whole_returns
from starling.sight import Sight, see, successors
from starling.spec import Spec
from starling.types import Batch, Group, Losses, Nets

Returns = Literal["whole", "to_go", "bootstrapped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class A2cConfig(LearnerPolicyConfig):
    """The knobs of every policy gradient here, and A2C's values of them."""

    returns: Returns = "bootstrapped"
    """what a step is judged by: its whole episode, what came from there on, or that with the value to go on with"""
    baseline: bool = True
    """learn a value, and judge a step by how much better it turned out"""
    gae_lambda: float = 1.0
    """of bootstrapped returns; 1: n steps, n up to the unroll's length; 0: one step"""
    normalise_advantages: bool = False
    """judge steps in standard deviations from the batch's mean"""

    def __post_init__(self) -> None:
        LearnerPolicyConfig.__post_init__(self)  # slots: super() would mean the class before they were made
        known = get_args(Returns)
        check(self.returns in known, f"algorithm.returns must be one of {', '.join(known)}, got {self.returns!r}")
        check(0.0 <= self.gae_lambda <= 1.0, f"algorithm.gae_lambda must be in [0, 1], got {self.gae_lambda}")
        bootstrapped = self.returns == "bootstrapped"
        check(
            bootstrapped or self.gae_lambda == 1.0,
            f"algorithm.gae_lambda must be 1 for returns that are not bootstrapped, got {self.gae_lambda}",
        )
        check(self.baseline or not bootstrapped, "algorithm.baseline must be true for bootstrapped returns, got false")
        check(
            not (self.baseline and self.returns == "whole"),
            "algorithm.baseline must be false for whole returns, which no single step's value predicts, got true",
        )
        check(self.baseline or not self.shared, "algorithm.shared must be false without a baseline, got true")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorCriticConfig(A2cConfig):
    """One-step actor-critic: judged by the next reward and the value after it."""

    gae_lambda: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceConfig(A2cConfig):
    """REINFORCE: judged by what was earned from there on; `baseline` makes it that with a baseline."""

    returns: Returns = "to_go"
    baseline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradientConfig(A2cConfig):
    """The first formula: every step judged by the whole episode."""

    returns: Returns = "whole"
    baseline: bool = False


class ActorCritic(WithPolicy):
    """How to act, and what to minimise."""

    keeps_mu = False
    group = "actor_critic"

    def __init__(self, config: A2cConfig) -> None:
        super().__init__(config)
        self.config = config

    def networks(self, spec: Spec) -> Mapping[str, Network]:
        """A policy and, with a baseline, a value: in one network or in two."""
        networks = super().networks(spec)
        return networks if self.config.baseline else {"policy": networks["policy"]}

    def groups(self) -> Mapping[str, Group]:
        """One loss moves all that there is."""
        return super().groups() if self.config.baseline else {self.group: Group(networks=("policy",))}

    def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
        """Return the policy's loss, and with a baseline the value's, less the entropy."""
        config = self.config
        policy = see(nets, "policy", batch, ends=config.shared)
        goal, error = self._judge(nets, batch, policy)
        share = share_of(batch.valid)
        if config.normalise_advantages:
            goal = normalised(goal, share)
        decided = {head: output[:-1] for head, output in policy.rows.items()} | distributions.mask_in(batch.extras)
        log_pi, undecided = distributions.judge(decided, batch.action)  # [T, B]
        parts = {"policy": -log_pi * goal, "entropy": undecided}
        loss = parts["policy"] - config.entropy_cost * undecided
        if error is not None:
            parts["value"] = 0.5 * error * error
            loss = loss + config.value_cost * parts["value"]
        metrics = {name: (part.detach() * share).sum() for name, part in parts.items()}
        return Losses(groups={"actor_critic": (loss * share).sum()}, metrics=metrics)

    def _judge(self, nets: Nets, batch: Batch, policy: Sight) -> tuple[Any, Any]:
        """Return how well each step turned out, `[T, B]` without a graph, and the value's error, with one."""
        config = self.config
        cut = batch.terminated | batch.truncated
        if not config.baseline:
            if config.returns == "whole":
                first = batch.first[:-1]
                return in_numpy(whole_returns, batch.reward, cut, first, discount=config.discount), None
            return in_numpy(returns_to_go, batch.reward, cut, discount=config.discount), None
        critic = policy if config.shared else see(nets, "value", batch)
        value = critic.rows["value"].squeeze(-1)  # [T + 1, B]
        if config.returns == "to_go":
            returns = in_numpy(returns_to_go, batch.reward, cut, discount=config.discount)
        else:
            after = successors(batch, value, critic.final["value"].squeeze(-1))
            discount = config.discount * ~batch.terminated
            returns = in_numpy(lambda_returns, batch.reward, after, discount, cut, lam=config.gae_lambda)
        error = returns - value[:-1]
        return error.detach(), error
