"""The forward pass of actors whose networks are more than MLPs."""

from collections.abc import Mapping

import torch

from starling.networks.description import Network
from starling.networks.forward import Device
from starling.networks.modules import RecurrentModule, build_modules
from starling.params import Params
from starling.spec import Spec
from starling.types import Array, Columns


class TorchForward:
    """Torch modules on a device; `load` copies the parameters into them, and what goes in and out is numpy."""

    def __init__(self, networks: Mapping[str, Network], spec: Spec, device: Device = "cpu") -> None:
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._device = torch.device(chosen)
        self._modules = {name: module.to(self._device) for name, module in build_modules(networks, spec).items()}
        named = [(f"{n}.{p}", t) for n, m in self._modules.items() for p, t in m.named_parameters()]
        self._tensors = dict(named)

    def load(self, params: Params) -> None:
        """Use these parameters from now on."""
        arrays = params.arrays()
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(torch.tensor(arrays[name]))

    def __call__(self, obs: Array) -> dict[str, Array]:
        """Return the outputs of every head for observations `[E, ...]`; no network remembers."""
        return self.recall(obs, {})[0]

    def recall(self, obs: Array, state: Columns) -> tuple[dict[str, Array], Columns]:
        """Return the outputs, and the state after this step of each network that remembers."""
        outputs: dict[str, Array] = {}
        after: Columns = {}
        with torch.inference_mode():
            inputs = torch.tensor(obs, device=self._device)
            for name, module in self._modules.items():
                if isinstance(module, RecurrentModule):
                    heads, states = module(inputs[None], torch.tensor(state[name], device=self._device))
                    after[name] = states[0].cpu().numpy()
                    outputs |= {head: output[0].cpu().numpy() for head, output in heads.items()}
                else:
                    outputs |= {head: output.cpu().numpy() for head, output in module(inputs).items()}
        return outputs, after
