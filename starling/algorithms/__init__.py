"""The algorithms that ship, by name."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from starling.algorithms.a3c import A3c, A3cConfig
from starling.algorithms.actor_critic import (
    A2cConfig,
    ActorCritic,
    ActorCriticConfig,
    PolicyGradientConfig,
    ReinforceConfig,
)
from starling.algorithms.async_q import AsyncQ, AsyncQConfig
from starling.algorithms.dqn import Dqn, DqnConfig
from starling.algorithms.impala import Impala, ImpalaConfig
from starling.algorithms.ppo import Ppo, PpoConfig
from starling.types import Algorithm

Topology = Literal["replay", "queue", "lockstep", "gradients"]


class Choice(NamedTuple):
    """An algorithm's type of settings, what makes the algorithm from them, and where unrolls go for it to learn."""

    config: type[Any]
    build: Callable[[Any], Algorithm]
    topology: Topology


ALGORITHMS = {
    "dqn": Choice(DqnConfig, Dqn, "replay"),
    "a3c": Choice(A3cConfig, A3c, "gradients"),
    "async_q": Choice(AsyncQConfig, AsyncQ, "gradients"),
    "policy_gradient": Choice(PolicyGradientConfig, ActorCritic, "lockstep"),
    "reinforce": Choice(ReinforceConfig, ActorCritic, "lockstep"),
    "actor_critic": Choice(ActorCriticConfig, ActorCritic, "lockstep"),
    "a2c": Choice(A2cConfig, ActorCritic, "lockstep"),
    "ppo": Choice(PpoConfig, Ppo, "lockstep"),
    "impala": Choice(ImpalaConfig, Impala, "queue"),
}

__all__ = ["ALGORITHMS", "Choice", "Topology"]
