"""MLPs and memories in plain numpy: what actors run, as it starts sooner and is faster than torch at these sizes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from starling.networks.description import FURTHEST, SMALLEST_VARIANCE, Dueling, Head, Linear, Mlp, Moments, Network
from starling.params import Params
from starling.spec import Spec
from starling.types import Array, Columns


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


class Norm(NamedTuple):
    """Inputs less their mean, clipped, and by their deviation; None where the layer behind it divides."""

    mean: Array  # [F]
    furthest: Array  # [F]
    scale: Array | None  # [F]

    def __call__(self, x: Array) -> Array:
        """Map `[E, F]` to `[E, F]`."""
        off: Array = x - self.mean  # not folded into the layer: large means would cost all precision there
        np.minimum(off, self.furthest, out=off)
        np.maximum(off, -self.furthest, out=off)
        if self.scale is not None:
            off *= self.scale
        return off


class Values(NamedTuple):
    """A head that no observation changes."""

    values: Array  # [out]

    def __call__(self, x: Array) -> Array:
        """Map `[E, in]` to `[E, out]`, a read-only view."""
        return np.broadcast_to(self.values, (len(x), len(self.values)))


class Cell(NamedTuple):
    """A memory's layer: its inputs are the features and what it said before."""

    inputs: Layer
    recurrent: Array  # [H, 4 H]

    def __call__(self, features: Array, state: Array) -> Array:
        """Map features `[E, F]` and a state `[E, 2, H]` to the next state."""
        gates = self.inputs(features)
        gates += state[:, 0] @ self.recurrent
        take, hold, new, give = np.split(gates, 4, axis=-1)
        after = np.empty_like(state)
        after[:, 1] = _sigmoid(hold) * state[:, 1] + _sigmoid(take) * np.tanh(new)
        after[:, 0] = _sigmoid(give) * np.tanh(after[:, 1])
        return after


class Built(NamedTuple):
    """A network ready to run."""

    norm: Norm | None
    activate: Callable[[Array], Array]
    hidden: list[Layer]
    memory: Cell | None
    heads: dict[str, Layer | Values]


class NumpyForward:
    """The forward pass of networks whose torsos are all MLPs.

    `load` keeps views where a layer is used as it is; the two streams of a dueling head become one layer, and the first
    layer behind normalised inputs divides them by their deviations.
    """

    def __init__(self, networks: Mapping[str, Network], spec: Spec) -> None:
        self._networks = networks
        self._spec = spec
        self._built: dict[str, Built] = {}

    def load(self, params: Params) -> None:
        """Use these parameters from now on."""
        arrays = params.arrays()
        self._built = {name: _build(arrays, name, network) for name, network in self._networks.items()}

    def __call__(self, obs: Array) -> dict[str, Array]:
        """Return the outputs of every head for observations `[E, ...]`; no network remembers."""
        return self.recall(obs, {})[0]

    def recall(self, obs: Array, state: Columns) -> tuple[dict[str, Array], Columns]:
        """Return the outputs, and the state after this step of each network that remembers."""
        inputs = encode(obs, self._spec)
        outputs: dict[str, Array] = {}
        after: Columns = {}
        for name, (norm, activate, hidden, memory, heads) in self._built.items():
            x = inputs if norm is None else norm(inputs)
            for layer in hidden:
                x = activate(layer(x))
            if memory is not None:
                after[name] = memory(x, state[name])
                x = after[name][:, 0]
            for head, layer_of in heads.items():
                outputs[head] = layer_of(x)
        return outputs, after


def _build(arrays: Mapping[str, Array], name: str, network: Network) -> Built:
    torso = network.torso
    assert isinstance(torso, Mlp)
    hidden = [_layer(arrays, f"{name}.torso.layers.{i}") for i in range(len(torso.hidden))]
    norm = None
    if torso.normalise:
        mean, deviation = arrays[f"{name}.torso.norm.mean"], deviation_of(arrays, f"{name}.torso.norm")
        norm = Norm(mean, FURTHEST * deviation, None if hidden else 1.0 / deviation)
        if hidden:
            hidden[0] = Layer(hidden[0].weight / deviation[:, None], hidden[0].bias)
    memory = None
    if network.memory:
        recurrent = arrays[f"{name}.memory.recurrent.weight"].T
        memory = Cell(_layer(arrays, f"{name}.memory.inputs"), recurrent)
    heads = {head: _head(arrays, f"{name}.heads.{head}", kind) for head, kind in network.heads.items()}
    return Built(norm, _ACTIVATIONS[torso.activation], hidden, memory, heads)


def _relu(x: Array) -> Array:
    rectified: Array = np.maximum(x, 0.0, out=x)
    return rectified


def _tanh(x: Array) -> Array:
    squashed: Array = np.tanh(x, out=x)
    return squashed


_ACTIVATIONS = {"relu": _relu, "tanh": _tanh}


def _sigmoid(x: Array) -> Array:
    # by tanh, which does not overflow
    rising: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return rising


def _head(arrays: Mapping[str, Array], prefix: str, head: Head) -> Layer | Values:
    if isinstance(head, Linear):
        return _layer(arrays, prefix)
    if isinstance(head, Moments):
        return Values(deviation_of(arrays, prefix))
    if not isinstance(head, Dueling):
        return Values(arrays[f"{prefix}.values"])
    streams = _layer(arrays, f"{prefix}.streams")
    assert streams.bias is not None
    # Q = V + A - mean A is linear in the features, so both streams add up to one layer
    return Layer(join_streams(streams.weight), join_streams(streams.bias))


def deviation_of(arrays: Mapping[str, Array], prefix: str) -> Array:
    """Return the standard deviations that running moments stand for."""
    deviation: Array = np.sqrt(arrays[f"{prefix}.var"] + np.float32(SMALLEST_VARIANCE))
    return deviation


def join_streams(streams: Array) -> Array:
    """Add the first column, the value, to the others, the advantages, less their mean."""
    value, advantage = streams[..., :1], streams[..., 1:]
    q: Array = value + advantage - advantage.mean(-1, keepdims=True)
    return q


def _layer(arrays: Mapping[str, Array], prefix: str) -> Layer:
    return Layer(arrays[f"{prefix}.weight"].T, arrays.get(f"{prefix}.bias"))
