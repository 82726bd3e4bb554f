"""Asynchronous n-step Q-learning (Mnih et al., 2016): whole unrolls, each learned from once by who played it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starling.errors import check
from starling.exploration import epsilon_greedy, ladder
from starling.losses import huber, masked_mean
from starling.networks import Network
from starling.networks.description import Activation
from starling.networks.design import q_network, torso_for
from starling.returns import lambda_returns
from starling.sight import successors
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Batch, Believed, Group, Losses, Nets, Outputs, Place, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncQConfig:
    """The knobs of asynchronous n-step Q-learning."""

    discount: float = 0.99
    dueling: bool = False
    target_every: int = 100
    """versions of the parameters between copies to the target network"""
    huber_delta: float = 1.0
    """the loss is a line beyond this error; 0: squared everywhere"""
    hidden: tuple[int, ...] = (128, 128)
    """widths of the layers over vector observations; frames get the Nature CNN"""
    activation: Activation = "relu"
    epsilon_base: float = 0.4
    """copy i of all N explores with epsilon_base ** (1 + epsilon_exponent * i / (N - 1))"""
    epsilon_exponent: float = 7.0

    def __post_init__(self) -> None:
        check(0.0 <= self.discount <= 1.0, f"algorithm.discount must be in [0, 1], got {self.discount}")
        check(self.target_every >= 1, f"algorithm.target_every must be >= 1, got {self.target_every}")
        check(self.huber_delta >= 0.0, f"algorithm.huber_delta must be >= 0, got {self.huber_delta}")
        check(0.0 <= self.epsilon_base <= 1.0, f"algorithm.epsilon_base must be in [0, 1], got {self.epsilon_base}")
        check(self.epsilon_exponent >= 0.0, f"algorithm.epsilon_exponent must be >= 0, got {self.epsilon_exponent}")
        check(all(w >= 1 for w in self.hidden), f"algorithm.hidden must be widths >= 1, got {self.hidden}")


class AsyncQ:
    """How to act, and what to minimise."""

    def __init__(self, config: AsyncQConfig) -> None:
        self.config = config

    @property
    def window(self) -> None:
        """Every unroll is learned from once, whole."""
        return None

    def acting(self, spec: Spec) -> Mapping[str, Network]:
        """Q is all that there is."""
        return self.networks(spec)

    def columns(self, spec: Spec) -> Mapping[str, ArraySpec]:
        """Nothing beyond what every step has."""
        return {}

    def explore(self, place: Place) -> NDArray[np.float32]:
        """Give each copy its own epsilon."""
        return ladder(place, self.config.epsilon_base, self.config.epsilon_exponent)

    def act(self, outputs: Outputs, explore: NDArray[np.float32], rng: np.random.Generator) -> Act:
        """Take a random action with each copy's epsilon, else the greedy one."""
        return Act(epsilon_greedy(outputs["q"], explore, rng), extras={})

    def greedy(self, outputs: Outputs) -> Array:
        """Return the action of the largest Q."""
        action: Array = outputs["q"].argmax(-1)
        return action

    def value(self, outputs: Outputs) -> Array:
        """Return the largest Q."""
        value: Array = outputs["q"].max(-1)
        return value

    def priorities(self, windows: Believed) -> Array | None:
        """Nothing is replayed."""
        return None

    def networks(self, spec: Spec) -> Mapping[str, Network]:
        """One network with one head."""
        config = self.config
        return {"q": q_network("async_q", spec, torso_for(spec, config.hidden, config.activation), config.dueling)}

    def targets(self) -> Mapping[str, Target]:
        """A copy of Q that stands still between refreshes."""
        return {"target": Target(of="q", every=self.config.target_every)}

    def groups(self) -> Mapping[str, Group]:
        """One loss moves the one network."""
        return {"q": Group(networks=("q",))}

    def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
        """Return the Huber loss of every step's error, whose target counts rewards to the unroll's or episode's end."""
        config = self.config
        q = nets["q"](batch.obs[:-1])["q"]  # [T, B, A]
        taken = q.gather(-1, batch.action.long()[..., None]).squeeze(-1)
        best = nets.frozen("target", batch.obs)["q"].amax(-1)  # [T + 1, B]
        target = lambda_returns(
            batch.reward,
            successors(batch, best, nets.frozen("target", batch.final_obs)["q"].amax(-1)),
            discount=config.discount * ~batch.terminated,
            cut=batch.terminated | batch.truncated,
            lam=1.0,
        )
        error = target - taken
        loss = masked_mean(huber(error, config.huber_delta), batch.valid)
        metrics = {
            "q_mean": masked_mean(taken.detach(), batch.valid),
            "error_mean": masked_mean(error.detach().abs(), batch.valid),
        }
        return Losses(groups={"q": loss}, metrics=metrics)
