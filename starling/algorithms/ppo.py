"""PPO: several epochs over each batch, the ratio of policies clipped (Schulman et al., 2017).

Advantages, targets and the values to clip around are computed once, by the parameters that acted. The first part of
the first epoch sees those parameters too, so its ratios are 1 up to rounding: actors compute the logarithm of mu in
numpy, the loss that of pi in torch, both in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starling import distributions
from starling.errors import check
from starling.losses import masked_mean, normalised
from starling.networks import Lstm, Moments, Network
from starling.networks.description import Activation
from starling.networks.design import actor_critic, torso_for
from starling.returns import in_numpy, lambda_returns
from starling.sight import see, successors
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Batch, Believed, Group, Losses, Nets, Optimizing, Outputs, Place, Target

if TYPE_CHECKING:
    from starling.minibatches import Minibatches, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoConfig:
    """The knobs of PPO."""

    discount: float = 0.99
    gae_lambda: float = 0.95
    epochs: int = 4
    """times that each batch is gone over"""
    minibatches: int = 4
    """steps of the optimizer for each epoch; with a memory no more than there are copies, which stay whole"""
    clip: float = 0.2
    """a step is not learned from further once its action is likelier, or less likely, by more than this part"""
    anneal_clip: bool = False
    """let the clip fall to 0 over learner.anneal_env_steps"""
    value_clip: float = 0.0
    """the same for how far a value may go from what it was; 0: anywhere"""
    target_kl: float = 0.0
    """end an update before the part for which the policy is further than this from the one that acted; 0: never"""
    normalise_advantages: bool = True
    """judge steps in standard deviations from their part's mean"""
    normalise_returns: bool = False
    """learn values in units of the running standard deviation of the returns that they predict"""
    value_cost: float = 0.5
    entropy_cost: float = 0.0
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
        check(0.0 <= self.discount <= 1.0, f"algorithm.discount must be in [0, 1], got {self.discount}")
        check(0.0 <= self.gae_lambda <= 1.0, f"algorithm.gae_lambda must be in [0, 1], got {self.gae_lambda}")
        check(self.epochs >= 1, f"algorithm.epochs must be >= 1, got {self.epochs}")
        check(self.minibatches >= 1, f"algorithm.minibatches must be >= 1, got {self.minibatches}")
        check(self.clip > 0.0, f"algorithm.clip must be > 0, got {self.clip}")
        check(self.value_clip >= 0.0, f"algorithm.value_clip must be >= 0, got {self.value_clip}")
        check(self.target_kl >= 0.0, f"algorithm.target_kl must be >= 0, got {self.target_kl}")
        check(self.value_cost >= 0.0, f"algorithm.value_cost must be >= 0, got {self.value_cost}")
        check(self.entropy_cost >= 0.0, f"algorithm.entropy_cost must be >= 0, got {self.entropy_cost}")
        check(all(w >= 1 for w in self.hidden), f"algorithm.hidden must be widths >= 1, got {self.hidden}")
        check(self.memory >= 0, f"algorithm.memory must be >= 0, got {self.memory}")
        check(abs(self.log_std) <= 20.0, f"algorithm.log_std must be in [-20, 20], got {self.log_std}")


class Ppo:
    """How to act, what to minimise, and how often."""

    def __init__(self, config: PpoConfig) -> None:
        self.config = config

    @property
    def window(self) -> None:
        """Every unroll is learned from whole."""
        return None

    def acting(self, spec: Spec) -> Mapping[str, Network]:
        """The policy; with a memory also the value, whose state at an unroll's start only acting can know."""
        networks = self.networks(spec)
        return networks if self.config.memory else {"policy": networks["policy"]}

    def columns(self, spec: Spec) -> Mapping[str, ArraySpec]:
        """How likely the action was, to which ratios are taken, and what was possible."""
        return {"log_mu": ArraySpec((), "float32"), **distributions.mask_column(spec)}

    def explore(self, place: Place) -> NDArray[np.float32]:
        """The policy's own entropy explores, the same in every copy."""
        return np.zeros(place.num_copies, np.float32)

    def act(self, outputs: Outputs, explore: NDArray[np.float32], rng: np.random.Generator) -> Act:
        """Sample the policy, and write down how likely that was."""
        action = distributions.sample(outputs, rng)
        log_mu = distributions.log_prob(outputs, action)
        return Act(action, extras={"log_mu": log_mu, **distributions.mask_in(outputs)})

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
        torso = torso_for(spec, config.hidden, config.activation, config.normalise_obs)
        networks = actor_critic(spec, torso, memory, config.shared, config.log_std)
        if config.normalise_returns:
            critic = networks[self._critic]
            networks[self._critic] = replace(critic, heads={**critic.heads, "returns": Moments(outputs=1)})
        return networks

    def targets(self) -> Mapping[str, Target]:
        """Nothing follows anything."""
        return {}

    def groups(self) -> Mapping[str, Group]:
        """One loss moves all that there is."""
        return {"ppo": Group(networks=("policy",) if self.config.shared else ("policy", "value"))}

    def losses(self, nets: Nets, batch: Batch, rng: Any) -> Losses:
        """Return the loss over all of a batch at once."""
        minibatches, _ = self._minibatches(nets, batch)
        (part,) = minibatches.deal(1, rng)
        return self._losses(nets, part, batch.progress)

    def update(self, nets: Nets, optimizers: Optimizing, batch: Batch, rng: Any) -> Losses | None:
        """Step the optimizer for each part of each epoch; `minibatches` among the metrics says how often."""
        config = self.config
        minibatches, returns = self._minibatches(nets, batch)
        last, steps = None, 0
        for part in (part for _ in range(config.epochs) for part in minibatches.deal(config.minibatches, rng)):
            losses = self._losses(nets, part, batch.progress)
            if 0.0 < config.target_kl < losses.metrics["kl"]:
                break
            if optimizers.step(losses.groups):
                last, steps = losses, steps + 1
        if config.normalise_returns:  # not before: the values would be read in other units than they were learned in
            nets.observe(self._critic, "returns", returns[batch.valid][:, None])
        return last and replace(last, metrics={**last.metrics, "minibatches": steps})

    @property
    def _critic(self) -> str:
        """The network that has the value."""
        return "policy" if self.config.shared else "value"

    def _minibatches(self, nets: Nets, batch: Batch) -> tuple["Minibatches", Any]:
        """Return what to go over, for each step its advantage, its target, and its value as it was; and the returns."""
        import torch  # not above: actors import this file, and need no torch

        from starling.minibatches import Minibatches

        config = self.config
        with torch.no_grad():
            critic = see(nets, self._critic, batch)
        unit = critic.rows["returns"][0, 0, 0] if config.normalise_returns else 1.0
        value = critic.rows["value"].squeeze(-1)  # [T + 1, B]
        returns = in_numpy(
            lambda_returns,
            batch.reward,
            successors(batch, value * unit, critic.final["value"].squeeze(-1) * unit),
            config.discount * ~batch.terminated,
            batch.terminated | batch.truncated,
            lam=config.gae_lambda,
        )
        target = returns / unit
        computed = {"advantage": target - value[:-1], "target": target, "value": value[:-1]}
        return Minibatches(batch, computed), returns

    def _losses(self, nets: Nets, part: "Part", progress: float) -> Losses:
        config = self.config
        policy = {**_outputs(nets, "policy", part), **distributions.mask_in(part.extras)}
        critic = policy if config.shared else _outputs(nets, "value", part)
        advantage = part.extras["advantage"]
        if config.normalise_advantages:
            advantage = normalised(advantage, part.valid)
        log_pi, undecided = distributions.judge(policy, part.action)
        log_ratio = log_pi - part.extras["log_mu"]
        ratio = log_ratio.exp()
        clip = config.clip * (1.0 - progress) if config.anneal_clip else config.clip
        gain = clipped_gain(ratio, advantage, clip)
        error = clipped_error(
            critic["value"].squeeze(-1), part.extras["value"], part.extras["target"], config.value_clip
        )
        parts = {
            "policy": -masked_mean(gain, part.valid),
            "value": masked_mean(0.5 * error, part.valid),
            "entropy": masked_mean(undecided, part.valid),
        }
        total = parts["policy"] + config.value_cost * parts["value"] - config.entropy_cost * parts["entropy"]
        off = {
            "kl": masked_mean(ratio.detach() - 1.0 - log_ratio.detach(), part.valid),  # of pi from mu, never negative
            "clipped": masked_mean(((ratio.detach() - 1.0).abs() > clip).to(ratio.dtype), part.valid),
        }
        return Losses(groups={"ppo": total}, metrics={name: part.detach() for name, part in (parts | off).items()})


def clipped_gain(ratio: Any, advantage: Any, clip: float) -> Any:
    """Return ratio * advantage, but no more than it is at the clip: nothing is gained by going further."""
    return (ratio * advantage).minimum(ratio.clip(1.0 - clip, 1.0 + clip) * advantage)


def clipped_error(value: Any, before: Any, target: Any, clip: float) -> Any:
    """Return the value's squared error; with a clip no less than that of the value kept so near to what it was."""
    error = (target - value) ** 2
    if clip == 0.0:
        return error
    kept = before + (value - before).clip(-clip, clip)
    return error.maximum((target - kept) ** 2)


def _outputs(nets: Nets, name: str, part: "Part") -> Mapping[str, Any]:
    if name not in part.starts:
        outputs: Mapping[str, Any] = nets[name](part.obs)
        return outputs
    outputs, _ = nets[name](part.obs, part.starts[name], part.first)
    return outputs
