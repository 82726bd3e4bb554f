"""What a network is made of, said without building it: what actors, exports and checkpoints are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from starling.errors import check
from starling.spec import ArraySpec

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of each of the three."""

SMALLEST = 36
"""Height and width of the smallest frames that leave the last convolution something."""

FURTHEST = 10.0
"""Standard deviations from the mean to which a normalised input is clipped."""

SMALLEST_VARIANCE = 1e-8
"""What is added to a running variance: an input that never changes is divided by something."""

Activation = Literal["relu", "tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Fully connected layers over the flat (or one-hot) observation; no layers is the identity."""

    hidden: tuple[int, ...] = (128, 128)
    activation: Activation = "relu"
    normalise: bool = False
    """inputs less their running mean, in running deviations: of measured numbers, not of integers or bytes"""

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
    scale: float = 1.0
    """of the first weights: small ones make a policy that begins with every action alike"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dueling:
    """Q = V + A - mean A (Wang et al., 2016); two linear streams, so V and A are identified."""

    actions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lone:
    """A head that no observation changes: as many values, learned like weights."""

    outputs: int
    initial: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """A head that says the standard deviation of all that it was ever told to observe; no optimizer moves it."""

    outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lstm:
    """What remembers between torso and heads; its state of one copy is `[2, size]`: what it says, and its cell."""

    size: int = 64

    def __post_init__(self) -> None:
        check(self.size >= 1, f"memory must be >= 1 wide, got {self.size}")


Torso = Mlp | NatureCnn
Head = Linear | Dueling | Lone | Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A torso and its heads by name; the forward pass returns a dict of the heads' outputs."""

    torso: Torso
    heads: Mapping[str, Head]
    memory: Lstm | None = None


def state_specs(networks: Mapping[str, Network]) -> dict[str, ArraySpec]:
    """Return what each network that remembers carries from step to step; zeros where an episode begins."""
    return {name: ArraySpec((2, n.memory.size), "float32") for name, n in networks.items() if n.memory}
