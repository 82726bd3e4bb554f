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

import numpy as np
from numpy.typing import NDArray

from starling import distributions
from starling.errors import check
from starling.losses import masked_mean, normalised
from starling.networks import Lstm, Network
from starling.networks.description import Activation
from starling.networks.design import actor_critic, torso_for
from starling.returns import in_numpy, lambda_returns, returns_to_go, whole_returns
from starling.sight import Sight, see, successors
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Batch, Believed, Group, Losses, Nets, Outputs, Place, Target

Returns = Literal["whole", "to_go", "bootstrapped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class A2cConfig:
    """The knobs of every policy gradient here, and A2C's values of them."""

    discount: float = 0.99
    returns: Returns = "bootstrapped"
    """what a step is judged by: its whole episode, what came from there on, or that with the value to go on with"""
    baseline: bool = True
    """learn a value, and judge a step by how much better it turned out"""
    gae_lambda: float = 1.0
    """of bootstrapped returns; 1: n steps, n up to the unroll's length; 0: one step"""
    normalise_advantages: bool = False
    """judge steps in standard deviations from the batch's mean"""
    value_cost: float = 0.5
    entropy_cost: float = 0.01
    shared: bool = False
    """policy and value are two heads of one network; otherwise two networks"""
    hidden: tuple[int, ...] = (64, 64)
    """widths of the layers over vector observations; frames get the Nature CNN"""
    activation: Activation = "tanh"
    normalise_obs: bool = False
    """show the networks observations less their running mean, by their running deviation"""
    memory: int = 0
    """width of an LSTM behind the layers; 0: none"""
    log_std: float = 0.0
    """what the spread of a continuous policy begins with, as a logarithm"""

    def __post_init__(self) -> None:
        known = get_args(Returns)
        check(0.0 <= self.discount <= 1.0, f"algorithm.discount must be in [0, 1], got {self.discount}")
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
        check(self.value_cost >= 0.0, f"algorithm.value_cost must be >= 0, got {self.value_cost}")
        check(self.entropy_cost >= 0.0, f"algorithm.entropy_cost must be >= 0, got {self.entropy_cost}")
        check(all(w >= 1 for w in self.hidden), f"algorithm.hidden must be widths >= 1, got {self.hidden}")
        check(self.memory >= 0, f"algorithm.memory must be >= 0, got {self.memory}")
        check(abs(self.log_std) <= 20.0, f"algorithm.log_std must be in [-20, 20], got {self.log_std}")


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


class ActorCritic:
    """How to act, and what to minimise."""

    def __init__(self, config: A2cConfig) -> None:
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
        """Nothing beyond what every step has, and what was possible: those who acted are those who learn."""
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
        """A policy and, with a baseline, a value: in one network or in two."""
        config = self.config
        memory = Lstm(size=config.memory) if config.memory else None
        torso = torso_for(spec, config.hidden, config.activation, config.normalise_obs)
        networks = actor_critic(spec, torso, memory, config.shared, config.log_std)
        return networks if config.baseline else {"policy": networks["policy"]}

    def targets(self) -> Mapping[str, Target]:
        """Nothing follows anything."""
        return {}

    def groups(self) -> Mapping[str, Group]:
        """One loss moves all that there is."""
        separate = self.config.baseline and not self.config.shared
        return {"actor_critic": Group(networks=("policy", "value") if separate else ("policy",))}

    def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
        """Return the policy's loss, and with a baseline the value's, less the entropy."""
        config = self.config
        policy = see(nets, "policy", batch, ends=config.shared)
        goal, error = self._judge(nets, batch, policy)
        if config.normalise_advantages:
            goal = normalised(goal, batch.valid)
        decided = {head: output[:-1] for head, output in policy.rows.items()} | distributions.mask_in(batch.extras)
        log_pi, undecided = distributions.judge(decided, batch.action)  # [T, B]
        parts = {
            "policy": -masked_mean(log_pi * goal, batch.valid),
            "entropy": masked_mean(undecided, batch.valid),
        }
        total = parts["policy"] - config.entropy_cost * parts["entropy"]
        if error is not None:
            parts["value"] = masked_mean(0.5 * error * error, batch.valid)
            total = total + config.value_cost * parts["value"]
        return Losses(groups={"actor_critic": total}, metrics={name: part.detach() for name, part in parts.items()})

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
