"""A policy's networks as one torch module, written as ONNX."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cluster.api import Policy
from starling.networks.modules import build_modules


class Heads(nn.Module):
    """Every network's heads behind one another."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(build_modules(policy.networks, policy.spec))
        arrays = policy.params.arrays()
        with torch.no_grad():
            for name, tensor in self.networks.named_parameters():
                tensor.copy_(torch.tensor(arrays[name]))
        self.names = [head for network in policy.networks.values() for head in network.heads]

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        """Map observations to every head's outputs."""
        return tuple(output for network in self.networks.values() for output in network(obs).values())


def write(policy: Policy, output: Path) -> list[str]:
    """Write the model, for any number of observations at once, and return its outputs' names."""
    module = Heads(policy).eval()
    obs = torch.tensor(policy.spec.obs.zeros(2))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of every package that it could do without
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's about itself
        torch.onnx.export(
            module,
            (obs,),
            output,
            input_names=["obs"],
            output_names=module.names,
            dynamic_shapes=({0: torch.export.Dim("copies")},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    return module.names
