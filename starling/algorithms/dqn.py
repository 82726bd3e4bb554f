"""DQN and its switches: double (van Hasselt 2016), dueling, n-step, prioritized, and Ape-X's ladder (Horgan 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starling.errors import check
from starling.exploration import epsilon_greedy, ladder
from starling.losses import huber
from starling.networks import Network
from starling.networks.description import Activation
from starling.networks.design import q_network, torso_for
from starling.returns import n_step
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Batch, Believed, Group, Losses, Nets, Outputs, Place, Target
from starling.windows import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class DqnConfig:
    """The knobs of DQN."""

    discount: float = 0.99
    n_step: int = 3
    double: bool = True
    """choose the next action by the online network, value it by the target"""
    dueling: bool = True
    target_every: int = 50
    """updates between copies to the target network"""
    huber_delta: float = 1.0
    """the loss is a line beyond this error; 0: squared everywhere"""
    hidden: tuple[int, ...] = (128, 128)
    """widths of the layers over vector observations; frames get the Nature CNN"""
    activation: Activation = "relu"
    bias: bool = True
    """of the last layer; without it, hidden layers and dueling, integer observations make a table"""
    epsilon_base: float = 0.4
    """copy i of all N explores with epsilon_base ** (1 + epsilon_exponent * i / (N - 1))"""
    epsilon_exponent: float = 7.0

    def __post_init__(self) -> None:
        check(0.0 <= self.discount <= 1.0, f"algorithm.discount must be in [0, 1], got {self.discount}")
        check(self.n_step >= 1, f"algorithm.n_step must be >= 1, got {self.n_step}")
        check(self.target_every >= 1, f"algorithm.target_every must be >= 1, got {self.target_every}")
        check(self.huber_delta >= 0.0, f"algorithm.huber_delta must be >= 0, got {self.huber_delta}")
        check(0.0 <= self.epsilon_base <= 1.0, f"algorithm.epsilon_base must be in [0, 1], got {self.epsilon_base}")
        check(self.epsilon_exponent >= 0.0, f"algorithm.epsilon_exponent must be >= 0, got {self.epsilon_exponent}")
        check(all(w >= 1 for w in self.hidden), f"algorithm.hidden must be widths >= 1, got {self.hidden}")
        check(self.bias or not self.dueling, "algorithm.bias must be true with dueling, got false")


class Dqn:
    """How to act, and what to minimise."""

    def __init__(self, config: DqnConfig) -> None:
        self.config = config

    @property
    def window(self) -> Window:
        """`n_step` steps, of which only the first and the last observation are needed."""
        return Window(length=self.config.n_step)

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
        q = outputs["q"]  # [E, A]
        action = epsilon_greedy(q, explore, rng)
        return Act(action, extras={}, taken=q[np.arange(len(q)), action])

    def greedy(self, outputs: Outputs) -> Array:
        """Return the action of the largest Q."""
        action: Array = outputs["q"].argmax(1)
        return action

    def value(self, outputs: Outputs) -> Array:
        """Return the largest Q."""
        value: Array = outputs["q"].max(1)
        return value

    def priorities(self, windows: Believed) -> Array:
        """Return the size of the n-step error by the actor's own network, as Ape-X does."""
        total, factor = n_step(windows.reward, windows.terminated, windows.valid, self.config.discount)
        last = windows.value[windows.steps, np.arange(len(windows.steps))]
        error: Array = abs(total + factor * last - windows.taken[0])
        return error

    def networks(self, spec: Spec) -> Mapping[str, Network]:
        """One network with one head, over frames or over a flat observation."""
        config = self.config
        torso = torso_for(spec, config.hidden, config.activation)
        return {"q": q_network("dqn", spec, torso, config.dueling, config.bias)}

    def targets(self) -> Mapping[str, Target]:
        """A copy of Q that stands still between refreshes."""
        return {"target": Target(of="q", every=self.config.target_every)}

    def groups(self) -> Mapping[str, Group]:
        """One loss moves the one network."""
        return {"q": Group(networks=("q",))}

    def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
        """Return the weighted Huber loss of the n-step error, and its size as priority."""
        config = self.config
        first, last = batch.obs[0], batch.obs[-1]
        q = nets["q"](first)["q"]  # [B, A]
        taken = q.gather(1, batch.action[0].long()[:, None]).squeeze(1)
        evaluated = nets.frozen("target", last)["q"]  # [B, A]
        chooser = nets.frozen("q", last)["q"] if config.double else evaluated
        best = evaluated.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
        total, factor = n_step(batch.reward, batch.terminated, batch.valid, config.discount)
        error = total + factor * best - taken
        loss = (batch.weights * huber(error, config.huber_delta)).mean()
        metrics = {"q_mean": q.detach().mean(), "error_mean": error.detach().abs().mean()}
        return Losses(groups={"q": loss}, priorities=error.detach().abs(), metrics=metrics)
