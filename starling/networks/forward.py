"""How an actor runs its networks: one small interface, numpy behind it for MLPs and torch for frames."""

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from starling.networks.description import Mlp, Network, state_specs
from starling.networks.numpy_forward import NumpyForward
from starling.params import Params
from starling.spec import Spec
from starling.types import Array, Columns, Outputs

Device = Literal["auto", "cpu", "cuda"]


class Forward(Protocol):
    """Observations of many copies in, the outputs of every head out."""

    def load(self, params: Params) -> None:
        """Use these parameters from now on; they must not be written to afterwards."""

    def __call__(self, obs: Array) -> Outputs:
        """Return each head's outputs, `[E, ...]`; no network remembers."""

    def recall(self, obs: Array, state: Columns) -> tuple[Outputs, Columns]:
        """Return each head's outputs, and of each network that remembers the state after this step, `[E, 2, H]`."""


class Recall:
    """Runs the networks of the same copies step by step, and keeps what is remembered of each copy's episode.

    A state that was handed out is not written to by a later step.
    """

    def __init__(self, forward: Forward, networks: Mapping[str, Network], num_copies: int) -> None:
        self._forward = forward
        self.state: Columns = {name: spec.zeros(num_copies) for name, spec in state_specs(networks).items()}

    def __call__(self, obs: Array) -> Outputs:
        """Return each head's outputs for the copies' next step."""
        if not self.state:
            return self._forward(obs)
        outputs, self.state = self._forward.recall(obs, self.state)
        return outputs

    def forget(self, copies: NDArray[np.bool_]) -> None:
        """Begin a new episode in these copies, `[E]`."""
        self.state = {
            name: np.where(copies[:, None, None], np.float32(0.0), state) for name, state in self.state.items()
        }


def build_forward(networks: Mapping[str, Network], spec: Spec, device: Device = "cpu") -> Forward:
    """Return the quickest forward pass for these networks; torch is imported only if one is no MLP, or for cuda.

    `auto` is cuda for what needs torch, where there is one.
    """
    if device != "cuda" and all(isinstance(network.torso, Mlp) for network in networks.values()):
        return NumpyForward(networks, spec)
    from starling.networks.torch_forward import TorchForward  # an actor with an MLP must not pay for torch

    return TorchForward(networks, spec, device)
