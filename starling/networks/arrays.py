"""The arrays of a network, known without building it: for whoever holds parameters but runs no network."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import prod, sqrt
from typing import NamedTuple

import numpy as np

from starling.networks.description import CONVOLUTIONS, Dueling, Head, Linear, Lone, Mlp, Moments, Network, Torso
from starling.params import Layout, Params
from starling.spec import Spec


class ArrayOf(NamedTuple):
    """One array of a network as `starling.networks.modules` names it, and what it begins with."""

    name: str
    shape: tuple[int, ...]
    bound: float  # drawn uniformly within it
    value: float = 0.0  # added to what is drawn

    def draw(self, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Return first values."""
        return (self.value + self.bound * rng.uniform(-1.0, 1.0, self.shape)).astype(np.float32)


def layout_of(networks: Mapping[str, Network], spec: Spec) -> Layout:
    """Return the layout of networks one behind the other, as the torch modules have it."""
    return Layout(tuple((array.name, array.shape) for array in arrays_of(networks, spec)))


def first_params(networks: Mapping[str, Network], spec: Spec, rng: np.random.Generator) -> Params:
    """Draw every network's first parameters, by torch's own rule: uniformly within 1/sqrt(fan in)."""
    return Params.of({array.name: array.draw(rng) for array in arrays_of(networks, spec)})


def num_params(network: Network, spec: Spec) -> int:
    """Return how many numbers such a network has."""
    return sum(prod(array.shape) for array in arrays_of({"": network}, spec))


def arrays_of(networks: Mapping[str, Network], spec: Spec) -> Iterator[ArrayOf]:
    """Yield the arrays of networks in order."""
    for name, network in networks.items():
        for array in _torso(network.torso, spec):
            yield array._replace(name=f"{name}.torso.{array.name}")
        features = _features(network.torso, spec)
        if network.memory:
            size = network.memory.size
            yield from _linear(f"{name}.memory.inputs", (4 * size, features))
            yield from _linear(f"{name}.memory.recurrent", (4 * size, size), bias=False)
            features = size
        for head, kind in network.heads.items():
            yield from _head(f"{name}.heads.{head}", kind, features)


def _torso(torso: Torso, spec: Spec) -> Iterator[ArrayOf]:
    if isinstance(torso, Mlp):
        if torso.normalise:
            yield from _moments("norm", spec.features)
        for i, (inputs, outputs) in enumerate(pairwise([spec.features, *torso.hidden])):
            yield from _linear(f"layers.{i}", (outputs, inputs))
        return
    channels, height, width = spec.obs.shape
    for i, (outputs, kernel, stride) in enumerate(CONVOLUTIONS):
        yield from _linear(f"convs.{2 * i}", (outputs, channels, kernel, kernel))
        channels, height, width = outputs, (height - kernel) // stride + 1, (width - kernel) // stride + 1
    yield from _linear("linear", (torso.features, channels * height * width))


def _features(torso: Torso, spec: Spec) -> int:
    if isinstance(torso, Mlp):
        return torso.hidden[-1] if torso.hidden else spec.features
    return torso.features


def _head(name: str, head: Head, features: int) -> Iterator[ArrayOf]:
    match head:
        case Linear():
            yield from _linear(name, (head.outputs, features), head.bias, head.scale)
        case Dueling():
            yield from _linear(f"{name}.streams", (1 + head.actions, features))
        case Lone():
            yield ArrayOf(f"{name}.values", (head.outputs,), 0.0, head.initial)
        case Moments():
            yield from _moments(name, head.outputs)


def _moments(name: str, size: int) -> Iterator[ArrayOf]:
    yield ArrayOf(f"{name}.mean", (size,), 0.0)
    yield ArrayOf(f"{name}.var", (size,), 0.0, 1.0)
    yield ArrayOf(f"{name}.count", (1,), 0.0)


def _linear(name: str, shape: tuple[int, ...], bias: bool = True, scale: float = 1.0) -> Iterator[ArrayOf]:
    bound = scale / sqrt(prod(shape[1:]))
    yield ArrayOf(f"{name}.weight", shape, bound)
    if bias:
        yield ArrayOf(f"{name}.bias", shape[:1], bound)
