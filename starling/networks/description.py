"""What a network is made of, said without building it: what actors, exports and checkpoints are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from starling.errors import check

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
