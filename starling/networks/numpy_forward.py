"""MLPs in plain numpy: what actors run, since it starts sooner and acts faster than torch at these sizes."""

from collections.abc import Mapping

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


class NumpyForward:
    """The forward pass of networks whose torsos are all MLPs. `load` keeps views: it copies nothing."""

    def __init__(self, networks: Mapping[str, Network], spec: Spec) -> None:
        self._networks = networks
        self._spec = spec
        self._arrays: dict[str, Array] = {}

    def load(self, params: Params) -> None:
        """Use these parameters from now on."""
        self._arrays = {
            # a linear layer's weight is [out, in]; turned once, so that inputs multiply from the left
            name: array.T if array.ndim == 2 else array
            for name, array in params.arrays().items()
        }

    def __call__(self, obs: Array) -> dict[str, Array]:
        """Return the outputs of every head for observations `[E, ...]`."""
        inputs = encode(obs, self._spec)
        outputs: dict[str, Array] = {}
        for name, network in self._networks.items():
            assert isinstance(network.torso, Mlp)
            features = self._torso(f"{name}.torso.layers", network.torso, inputs)
            for head_name, head in network.heads.items():
                outputs[head_name] = self._head(f"{name}.heads.{head_name}", head, features)
        return outputs

    def _torso(self, prefix: str, torso: Mlp, x: Array) -> Array:
        for i in range(len(torso.hidden)):
            x = self._linear(f"{prefix}.{i}", x)
            if torso.activation == "relu":
                np.maximum(x, 0.0, out=x)
            else:
                np.tanh(x, out=x)
        return x

    def _head(self, prefix: str, head: Head, features: Array) -> Array:
        if isinstance(head, Linear):
            return self._linear(prefix, features, head.bias)
        streams = self._linear(f"{prefix}.streams", features)
        value, advantage = streams[:, :1], streams[:, 1:]
        q: Array = value + advantage - advantage.mean(-1, keepdims=True)
        return q

    def _linear(self, prefix: str, x: Array, bias: bool = True) -> Array:
        y: Array = x @ self._arrays[f"{prefix}.weight"]
        if bias:
            y += self._arrays[f"{prefix}.bias"]
        return y
