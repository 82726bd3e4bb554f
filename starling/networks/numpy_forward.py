"""MLPs in plain numpy: what actors run, since it starts sooner and acts faster than torch at these sizes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from starling.networks.description import Head, Linear, Mlp, Network
from starling.params import Params
from starling.spec import Spec
from starling.types import Array


def encode(obs: Array, spec: Spec) -> Array:
    """Return observations `[E, ...]` as float32 inputs `[E, F]`: integers one-hot, bytes scaled to [0, 1]."""
    if spec.classes:
        digits = obs.reshape(len(obs), len(spec.classes))
        hot = [np.eye(n, dtype=np.float32)[digits[:, i]] for i, n in enumerate(spec.classes)]
        return np.concatenate(hot, 1) if len(hot) > 1 else hot[0]
    flat = obs.reshape(len(obs), spec.features)
    if flat.dtype == np.uint8:
        return flat.astype(np.float32) / np.float32(255.0)
    return flat.astype(np.float32, copy=False)


class Layer(NamedTuple):
    """A linear layer, its weight turned so that inputs multiply from the left."""

    weight: Array  # [in, out]
    bias: Array | None

    def __call__(self, x: Array) -> Array:
        """Map `[E, in]` to `[E, out]`."""
        y: Array = x @ self.weight
        if self.bias is not None:
            y += self.bias
        return y


class NumpyForward:
    """The forward pass of networks whose torsos are all MLPs.

    `load` keeps views where a layer is used as it is; the two streams of a dueling head become one layer.
    """

    def __init__(self, networks: Mapping[str, Network], spec: Spec) -> None:
        self._networks = networks
        self._spec = spec
        self._layers: list[tuple[Callable[[Array], Array], list[Layer], dict[str, Layer]]] = []

    def load(self, params: Params) -> None:
        """Use these parameters from now on."""
        arrays = params.arrays()
        self._layers = []
        for name, network in self._networks.items():
            torso = network.torso
            assert isinstance(torso, Mlp)
            hidden = [_layer(arrays, f"{name}.torso.layers.{i}") for i in range(len(torso.hidden))]
            heads = {head: _head(arrays, f"{name}.heads.{head}", kind) for head, kind in network.heads.items()}
            self._layers.append((_ACTIVATIONS[torso.activation], hidden, heads))

    def __call__(self, obs: Array) -> dict[str, Array]:
        """Return the outputs of every head for observations `[E, ...]`."""
        inputs = encode(obs, self._spec)
        outputs: dict[str, Array] = {}
        for activate, hidden, heads in self._layers:
            x = inputs
            for layer in hidden:
                x = activate(layer(x))
            for name, head in heads.items():
                outputs[name] = head(x)
        return outputs


def _relu(x: Array) -> Array:
    rectified: Array = np.maximum(x, 0.0, out=x)
    return rectified


def _tanh(x: Array) -> Array:
    squashed: Array = np.tanh(x, out=x)
    return squashed


_ACTIVATIONS = {"relu": _relu, "tanh": _tanh}


def _head(arrays: Mapping[str, Array], prefix: str, head: Head) -> Layer:
    if isinstance(head, Linear):
        return _layer(arrays, prefix)
    streams = _layer(arrays, f"{prefix}.streams")
    assert streams.bias is not None
    # Q = V + A - mean A is linear in the features, so both streams add up to one layer
    return Layer(join_streams(streams.weight), join_streams(streams.bias))


def join_streams(streams: Array) -> Array:
    """Add the first column, the value, to the others, the advantages, less their mean."""
    value, advantage = streams[..., :1], streams[..., 1:]
    q: Array = value + advantage - advantage.mean(-1, keepdims=True)
    return q


def _layer(arrays: Mapping[str, Array], prefix: str) -> Layer:
    return Layer(arrays[f"{prefix}.weight"].T, arrays.get(f"{prefix}.bias"))
