"""How an actor runs its networks: one small interface, numpy behind it for MLPs and torch for the rest."""

from collections.abc import Mapping
from typing import Protocol

from starling.networks.description import Mlp, Network
from starling.networks.numpy_forward import NumpyForward
from starling.params import Params
from starling.spec import Spec
from starling.types import Array, Outputs


class Forward(Protocol):
    """Observations of many copies in, the outputs of every head out."""

    def load(self, params: Params) -> None:
        """Use these parameters from now on; they must not be written to afterwards."""

    def __call__(self, obs: Array) -> Outputs:
        """Return each head's outputs, `[E, ...]`."""


def build_forward(networks: Mapping[str, Network], spec: Spec) -> Forward:
    """Return the quickest forward pass for these networks; torch is imported only if one is no MLP."""
    if all(isinstance(network.torso, Mlp) for network in networks.values()):
        return NumpyForward(networks, spec)
    from starling.networks.torch_forward import TorchForward  # an actor with an MLP must not pay for torch

    return TorchForward(networks, spec)
