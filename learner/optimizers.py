"""One optimizer for each group of networks, with clipping and refusal of what is not finite."""

from collections.abc import Iterator, Mapping
from math import hypot, isfinite
from typing import Any

import torch
from torch import Tensor

from learner.config import OptimizerConfig
from starling.networks.nets import LearnerNets
from starling.state import State
from starling.types import Group


class Optimizers:
    """Steps each group of networks towards its own loss."""

    def __init__(self, config: OptimizerConfig, groups: Mapping[str, Group], nets: LearnerNets) -> None:
        self._config = config
        self._groups = groups
        self._nets = nets
        self._optimizers = {name: _optimizer(config, group, nets) for name, group in groups.items()}
        self._updates = 0
        self.steps = 0  # taken or refused

    def begin(self, updates: int, rest: float = 1.0) -> None:
        """Begin the update after `updates` of them, at this part of the learning rates."""
        self._updates = updates
        for name, optimizer in self._optimizers.items():
            for part in optimizer.param_groups:
                part["lr"] = rest * _learning_rate(self._config, self._groups[name])

    def step(self, losses: Mapping[str, Tensor]) -> bool:
        """Take one step per group that is due; return False, having moved nothing, if anything is not finite."""
        self.steps += 1
        due = [name for name, group in self._groups.items() if self._updates % group.every == 0]
        self._nets.gradient.zero_()
        for name in due:
            networks = self._groups[name].networks
            losses[name].backward(inputs=self._nets.parameters(*networks), retain_graph=name != due[-1])
        norms = {name: self._norm(name) for name in due}
        if not all(isfinite(norm) and isfinite(losses[name].item()) for name, norm in norms.items()):
            return False
        for name, norm in norms.items():
            if 0.0 < self._config.clip_norm < norm:
                for gradient in self._gradients(name):
                    gradient.mul_(self._config.clip_norm / norm)
            self._optimizers[name].step()
        return True

    def state(self) -> State:
        """Return what the optimizers have gathered: moments and counts, by group, network and name."""
        arrays = {
            f"{group}/{network}/{name}": tensor.detach().to("cpu", copy=True).numpy()
            for group, network, kept in self._kept()
            for name, tensor in kept.items()
            if isinstance(tensor, Tensor)
        }
        return State(arrays)

    def restore(self, state: State) -> None:
        """Take over what others of the same kind have gathered; one that has not stepped yet has nothing."""
        for group, network, kept in self._kept():
            kept.clear()
            vector = self._nets.vectors[network]
            start = f"{group}/{network}/"
            for name, array in state.arrays.items():
                if name.startswith(start):
                    kept[name.removeprefix(start)] = torch.tensor(array, device=vector.device)

    def _kept(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for group, optimizer in self._optimizers.items():
            for network in self._groups[group].networks:
                yield group, network, optimizer.state[self._nets.vectors[network]]

    def _norm(self, name: str) -> float:
        return hypot(*(torch.linalg.vector_norm(gradient).item() for gradient in self._gradients(name)))

    def _gradients(self, name: str) -> list[Tensor]:
        return [self._nets.gradients[network] for network in self._groups[name].networks]


def _optimizer(config: OptimizerConfig, group: Group, nets: LearnerNets) -> torch.optim.Optimizer:
    vectors = [nets.vectors[name] for name in group.networks]
    rate = _learning_rate(config, group)
    if config.kind == "adam":
        return torch.optim.Adam(vectors, lr=rate, eps=config.eps, fused=True)
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(vectors, lr=rate, alpha=config.decay, eps=config.eps, centered=config.centered)
    return torch.optim.SGD(vectors, lr=rate)


def _learning_rate(config: OptimizerConfig, group: Group) -> float:
    return config.learning_rate if group.learning_rate is None else group.learning_rate
