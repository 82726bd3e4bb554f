"""The learner's networks: torch modules whose parameters and gradients are views into flat buffers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from starling.networks import Network
from starling.networks.modules import build_modules
from starling.params import Layout, Params
from starling.spec import Spec
from starling.types import Target


class LearnerNets:
    """Networks and targets by name.

    All networks lie in one buffer, in their order, and each target in one of its own: so publishing, following a
    target and clipping are single operations however many arrays there are.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        targets: Mapping[str, Target],
        spec: Spec,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._modules = {name: m.to(device) for name, m in build_modules(networks, spec, generator).items()}
        self.layout = Layout(
            tuple((f"{n}.{p}", tuple(t.shape)) for n, m in self._modules.items() for p, t in m.named_parameters())
        )
        self.flat = torch.zeros(self.layout.size, device=device)
        self.gradient = torch.zeros_like(self.flat)
        self.vectors: dict[str, nn.Parameter] = {}  # by network: its part of `flat`, what an optimizer moves
        self.gradients: dict[str, Tensor] = {}  # by network: its part of `gradient`
        start = 0
        for name, module in self._modules.items():
            size = sum(p.numel() for p in module.parameters())
            part = slice(start, start + size)
            _move_into(module, self.flat[part], self.gradient[part])
            self.vectors[name] = nn.Parameter(self.flat[part])
            self.gradients[name] = self.vectors[name].grad = self.gradient[part]
            start += size
        self._targets = {
            name: (target, self._target(target, networks, spec, device)) for name, target in targets.items()
        }

    def __getitem__(self, name: str) -> nn.Module:
        """Return a network, or a target."""
        return self._modules[name] if name in self._modules else self._targets[name][1][0]

    def frozen(self, name: str, *inputs: Tensor) -> Any:
        """Return a network's outputs without a graph."""
        with torch.no_grad():
            return self[name](*inputs)

    def parameters(self, *names: str) -> list[nn.Parameter]:
        """Return the leaves that a backward pass to these networks fills."""
        return [parameter for name in names for parameter in self._modules[name].parameters()]

    def follow(self, updates: int) -> None:
        """Move every target after update number `updates`."""
        with torch.no_grad():
            for target, (_, flat) in self._targets.values():
                if updates % target.every == 0:
                    flat.lerp_(self.vectors[target.of], target.tau)

    def params(self, count: int) -> Params:
        """Return a copy of the first `count` arrays, on the host."""
        layout = self.layout.head(count)
        return Params(layout, self.flat[: layout.size].detach().to("cpu", copy=True).numpy())

    def load(self, params: Params) -> None:
        """Take over the values of the first networks, whose arrays these are; their targets follow at once."""
        assert params.layout == self.layout.head(len(params.layout.entries)), "another network's parameters"
        with torch.no_grad():
            self.flat[: params.layout.size].copy_(torch.from_numpy(np.array(params.buffer)))
            for target, (_, flat) in self._targets.values():
                flat.copy_(self.vectors[target.of])

    def _target(
        self, target: Target, networks: Mapping[str, Network], spec: Spec, device: torch.device
    ) -> tuple[nn.Module, Tensor]:
        module = build_modules({target.of: networks[target.of]}, spec)[target.of].to(device).requires_grad_(False)
        flat = self.vectors[target.of].detach().clone()
        _move_into(module, flat, None)
        return module, flat


def _move_into(module: nn.Module, values: Tensor, gradients: Tensor | None) -> None:
    """Turn the module's parameters (and gradients) into views of flat buffers, keeping their values."""
    start = 0
    for parameter in module.parameters():
        part = slice(start, start + parameter.numel())
        view = values[part].view_as(parameter)
        if gradients is not None:
            view.copy_(parameter.detach())
            parameter.grad = gradients[part].view_as(parameter)
        parameter.data = view
        start = part.stop
