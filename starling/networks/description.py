"""What a network is made of, said without building it: what actors, exports and checkpoints are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from starling.errors import check
from starling.spec import Spec

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of each of the three."""

Activation = Literal["relu", "tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Fully connected layers over the flat (or one-hot) observation; no layers is the identity."""

    hidden: tuple[int, ...] = (128, 128)
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        check(all(width >= 1 for width in self.hidden), f"hidden layers must be >= 1 wide, got {self.hidden}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NatureCnn:
    """The three convolutions of Mnih et al. (2015) and one layer of `features`, over uint8 frames [C, H, W]."""

    features: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A head of one linear layer; without `bias` and torso over one-hot states it is a table."""

    outputs: int
    bias: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dueling:
    """Q = V + A - mean A (Wang et al., 2016); two linear streams, so V and A are identified."""

    actions: int


Torso = Mlp | NatureCnn
Head = Linear | Dueling


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A torso and its heads by name; the forward pass returns a dict of the heads' outputs."""

    torso: Torso
    heads: Mapping[str, Head]


def num_params(network: Network, spec: Spec) -> int:
    """Return how many numbers such a network has."""
    torso = network.torso
    widths = [spec.features, *torso.hidden] if isinstance(torso, Mlp) else [_frames_out(spec), torso.features]
    layers = sum((before + 1) * after for before, after in pairwise(widths))
    heads = sum(_head_params(head, widths[-1]) for head in network.heads.values())
    return layers + heads + (0 if isinstance(torso, Mlp) else _conv_params(spec.obs.shape[0]))


def _head_params(head: Head, features: int) -> int:
    if isinstance(head, Dueling):
        return (features + 1) * (head.actions + 1)
    return (features + head.bias) * head.outputs


def _conv_params(channels: int) -> int:
    sides = [channels, *(out for out, _, _ in CONVOLUTIONS)]
    kernels = [kernel for _, kernel, _ in CONVOLUTIONS]
    return sum((i * k * k + 1) * o for (i, o), k in zip(pairwise(sides), kernels, strict=True))


def _frames_out(spec: Spec) -> int:
    _, height, width = spec.obs.shape
    for _, kernel, stride in CONVOLUTIONS:
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return CONVOLUTIONS[-1][0] * height * width
