"""Networks that learn: torch modules whose parameters and gradients are views into flat buffers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from starling.networks import Network
from starling.networks.modules import MlpModule, MomentsModule, build_module, build_modules
from starling.params import Layout, Params
from starling.spec import Spec
from starling.state import State, require_same
from starling.types import Array, Target


class LearnerNets:
    """Networks and targets by name.

    All networks lie in one buffer, in their order, and each target in one of its own: so publishing, following a
    target and clipping are single operations however many arrays there are. Running moments lie in it too: their
    gradient is always 0, which moves them by no bit and adds nothing to a norm.
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
        self._leaves = {  # looked up once: a module's own search takes as long as a small layer
            name: [parameter for parameter in module.parameters() if parameter.requires_grad]
            for name, module in self._modules.items()
        }
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
        return [parameter for name in names for parameter in self._leaves[name]]

    def observe(self, name: str, head: str, values: Tensor) -> None:
        """Merge rows of values, `[..., outputs]`, into the running moments of a head."""
        moments = self._modules[name].heads[head]
        assert isinstance(moments, MomentsModule), "only moments observe"
        moments.observe(values.reshape(-1, len(moments.mean)))

    @property
    def normalises_inputs(self) -> bool:
        """Whether any torso has moments of what it observes."""
        torsos = [module.torso for module in self._modules.values()]
        return any(isinstance(torso, MlpModule) and torso.norm is not None for torso in torsos)

    def observe_inputs(self, obs: Tensor) -> None:
        """Merge observations `[N, ...]` into the running moments of every torso that normalises them, if any does."""
        for module in self._modules.values():
            torso = module.torso
            if isinstance(torso, MlpModule) and torso.norm is not None:
                torso.norm.observe(obs.reshape(-1, len(torso.norm.mean)))

    def follow(self, updates: int, since: int | None = None) -> None:
        """Move every target whose turn came after update `since`, or with update number `updates` alone."""
        before = updates - 1 if since is None else since
        with torch.no_grad():
            for target, (module, flat) in self._targets.values():
                if updates // target.every > before // target.every:
                    flat.lerp_(self.vectors[target.of], target.tau)
                    _copy_moments(self._modules[target.of], module)

    def params(self, count: int) -> Params:
        """Return a copy of the first `count` arrays, on the host."""
        layout = self.layout.head(count)
        return Params(layout, self.flat[: layout.size].detach().to("cpu", copy=True).numpy())

    def load(self, params: Params) -> None:
        """Take over the values of the first networks, whose arrays these are; their targets follow at once."""
        self._take_over(params)
        with torch.no_grad():
            for target, (_, flat) in self._targets.values():
                flat.copy_(self.vectors[target.of])

    def advance(self, params: Params, version: int, since: int) -> None:
        """Take over a later version of all networks than `since`; the targets follow by versions, as by updates.

        For those who do not step optimizers themselves, and see only some of the versions: a target is then a copy of
        the first one seen after its turn.
        """
        self._take_over(params)
        self.follow(version, since)

    def load_some(self, arrays: Mapping[str, Array]) -> None:
        """Take over the values of single arrays by name; the targets follow at once."""
        with torch.no_grad():
            for name, span, shape in self.layout.spans():
                if name in arrays:
                    assert arrays[name].shape == shape, "another network's parameters"
                    self.flat[span].copy_(torch.tensor(arrays[name]).view(-1))
            for target, (_, flat) in self._targets.values():
                flat.copy_(self.vectors[target.of])

    def state(self) -> State:
        """Return every network by the names of its arrays, and each target as it lies."""
        arrays = {name: _numpy(self.flat[span]).reshape(shape) for name, span, shape in self.layout.spans()}
        return (
            State(arrays)
            .within("networks")
            .and_(State({name: _numpy(flat) for name, (_, (_, flat)) in self._targets.items()}).within("targets"))
        )

    def restore(self, state: State) -> None:
        """Take over all networks and targets."""
        stored = state.under("networks").arrays  # a file may keep them in another order
        entries = {name: array.shape for name, array in stored.items()}
        require_same("networks", sorted(entries.items()), sorted(self.layout.entries))
        params = Params.of({name: stored[name] for name, _ in self.layout.entries})
        targets = state.under("targets").arrays
        require_same("target networks", sorted(targets), sorted(self._targets))
        with torch.no_grad():
            self.flat.copy_(torch.from_numpy(params.buffer))
            for name, (_, (_, flat)) in self._targets.items():
                flat.copy_(torch.tensor(targets[name]))

    def _take_over(self, params: Params) -> None:
        assert params.layout == self.layout.head(len(params.layout.entries)), "another network's parameters"
        with torch.no_grad():
            self.flat[: params.layout.size].copy_(torch.from_numpy(np.array(params.buffer)))

    def _target(
        self, target: Target, networks: Mapping[str, Network], spec: Spec, device: torch.device
    ) -> tuple[nn.Module, Tensor]:
        module = build_module(networks[target.of], spec).to(device).requires_grad_(False)
        flat = self.vectors[target.of].detach().clone()
        _move_into(module, flat, None)
        return module, flat


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", copy=True).numpy()
    return array


def _copy_moments(of: nn.Module, to: nn.Module) -> None:
    """Give a target, however slowly it follows, the moments of its network: they say what both are shown."""
    for source, follower in zip(of.parameters(), to.parameters(), strict=True):
        if not source.requires_grad:
            follower.copy_(source)


def _move_into(module: nn.Module, values: Tensor, gradients: Tensor | None) -> None:
    """Turn the module's parameters (and gradients) into views of flat buffers, keeping their values."""
    start = 0
    for parameter in module.parameters():
        part = slice(start, start + parameter.numel())
        view = values[part].view_as(parameter)
        if gradients is not None:
            view.copy_(parameter.detach())
            if parameter.requires_grad:
                parameter.grad = gradients[part].view_as(parameter)
        parameter.data = view
        start = part.stop
