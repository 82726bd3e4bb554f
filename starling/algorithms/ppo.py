"""PPO: several epochs over each batch, the ratio of policies clipped (Schulman et al., 2017).

Advantages, targets and the values to clip around are computed once, by the parameters that acted. The first part of
the first epoch sees those parameters too, so its ratios are 1 up to rounding: actors compute the logarithm of mu in
numpy, the loss that of pi in torch, both in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from starling import distributions
from starling.algorithms.policies import LearnerPolicyConfig, WithPolicy
from starling.errors import check
from starling.losses import normalised, share_of
from starling.networks import Moments, Network
from starling.returns import in_numpy, lambda_returns
from starling.sight import see, successors
from starling.spec import Spec
from starling.types import Batch, Losses, Nets, Optimizing

if TYPE_CHECKING:
    from starling.minibatches import Minibatches, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoConfig(LearnerPolicyConfig):
    """The knobs of PPO."""

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
    entropy_cost: float = 0.0

    def __post_init__(self) -> None:
        LearnerPolicyConfig.__post_init__(self)  # slots: super() would mean the class before they were made
        check(0.0 <= self.gae_lambda <= 1.0, f"algorithm.gae_lambda must be in [0, 1], got {self.gae_lambda}")
        check(self.epochs >= 1, f"algorithm.epochs must be >= 1, got {self.epochs}")
        check(self.minibatches >= 1, f"algorithm.minibatches must be >= 1, got {self.minibatches}")
        check(self.clip > 0.0, f"algorithm.clip must be > 0, got {self.clip}")
        check(self.value_clip >= 0.0, f"algorithm.value_clip must be >= 0, got {self.value_clip}")
        check(self.target_kl >= 0.0, f"algorithm.target_kl must be >= 0, got {self.target_kl}")


class Ppo(WithPolicy):
    """How to act, what to minimise, and how often."""

    keeps_mu = True
    group = "ppo"

    def __init__(self, config: PpoConfig) -> None:
        super().__init__(config)
        self.config = config

    def networks(self, spec: Spec) -> Mapping[str, Network]:
        """A policy and a value, in one network or in two, and what returns are divided by."""
        networks = dict(super().networks(spec))
        if self.config.normalise_returns:
            critic = networks[self._critic]
            networks[self._critic] = replace(critic, heads={**critic.heads, "returns": Moments(outputs=1)})
        return networks

    def losses(self, nets: Nets, batch: Batch, rng: Any) -> Losses:
        """Return the loss over all of a batch at once."""
        minibatches, _ = self._minibatches(nets, batch)
        (part,) = minibatches.deal(1, rng)
        return self._judged(nets, part, batch.progress).losses()

    def update(self, nets: Nets, optimizers: Optimizing, batch: Batch, rng: Any) -> Losses | None:
        """Step the optimizer for each part of each epoch; `minibatches` among the metrics says how often."""
        config = self.config
        minibatches, returns = self._minibatches(nets, batch)
        last, steps = None, 0
        for part in (part for _ in range(config.epochs) for part in minibatches.deal(config.minibatches, rng)):
            judged = self._judged(nets, part, batch.progress)
            if 0.0 < config.target_kl < judged.mean(judged.distance):
                break
            if optimizers.step({"ppo": judged.loss}):
                last, steps = judged, steps + 1
        if config.normalise_returns and last:
            # not before: the values would be read in other units than they were learned in
            nets.observe(self._critic, "returns", returns[batch.valid][:, None])
        return last and last.losses(minibatches=steps)

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

    def _judged(self, nets: Nets, part: "Part", progress: float) -> "Judged":
        config = self.config
        policy = {**_outputs(nets, "policy", part), **distributions.mask_in(part.extras)}
        critic = policy if config.shared else _outputs(nets, "value", part)
        share = share_of(part.valid)
        advantage = part.extras["advantage"]
        if config.normalise_advantages:
            advantage = normalised(advantage, share)
        log_pi, undecided = distributions.judge(policy, part.action)
        log_ratio = log_pi - part.extras["log_mu"]
        ratio = log_ratio.exp()
        clip = config.clip * (1.0 - progress) if config.anneal_clip else config.clip
        error = clipped_error(
            critic["value"].squeeze(-1), part.extras["value"], part.extras["target"], config.value_clip
        )
        parts = {"policy": -clipped_gain(ratio, advantage, clip), "value": 0.5 * error, "entropy": undecided}
        loss = parts["policy"] + config.value_cost * parts["value"] - config.entropy_cost * undecided
        return Judged((loss * share).sum(), parts, share, ratio.detach(), log_ratio.detach(), clip)


class Judged(NamedTuple):
    """The loss of a part, and of what it is made; figures are computed only where somebody wants them."""

    loss: Any
    parts: Mapping[str, Any]  # of each step, by name
    share: Any  # of each step in a mean
    ratio: Any
    log_ratio: Any
    clip: float

    @property
    def distance(self) -> Any:
        """Of each step: its mean is how far pi is from mu, and no step's is negative."""
        return self.ratio - 1.0 - self.log_ratio

    def mean(self, of_steps: Any) -> Any:
        """Return a mean over steps."""
        return (of_steps.detach() * self.share).sum()

    def losses(self, **more: Any) -> Losses:
        """Return the loss with its figures."""
        told = {**self.parts, "kl": self.distance, "clipped": (self.ratio - 1.0).abs() > self.clip}
        return Losses(groups={"ppo": self.loss}, metrics={name: self.mean(each) for name, each in told.items()} | more)


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
