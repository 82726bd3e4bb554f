"""What a role keeps across a restart: arrays and plain values, so that a checkpoint holds nothing to execute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from starling.codec import Octets, decode, encode
from starling.errors import RunError
from starling.types import Array, Columns


@dataclass(frozen=True, slots=True)
class State:
    """A role at one moment. The arrays are the state's own: the role's next step does not change them."""

    arrays: Columns = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)  # as JSON could hold it, with whole numbers below 2^63

    def under(self, prefix: str) -> "State":
        """Return the state that `within` put under this prefix."""
        start = f"{prefix}/"
        arrays = {name.removeprefix(start): array for name, array in self.arrays.items() if name.startswith(start)}
        return State(arrays, self.meta[prefix])

    def within(self, prefix: str) -> "State":
        """Return the same as a part of a larger state."""
        return State({f"{prefix}/{name}": array for name, array in self.arrays.items()}, {prefix: dict(self.meta)})

    def and_(self, other: "State") -> "State":
        """Return both parts as one."""
        return State({**self.arrays, **other.arrays}, {**self.meta, **other.meta})


@runtime_checkable
class Lasting(Protocol):
    """A role that is more than its settings and its neighbours."""

    def state(self) -> State:
        """Return what it is now."""

    def restore(self, state: State) -> None:
        """Become that again."""


def pack_state(state: State) -> Array:
    """Return a state as one buffer."""
    return encode(state.arrays, dict(state.meta))


def unpack_state(buffer: Octets) -> State:
    """Return the state whose arrays are read-only views into `buffer`."""
    return State(*decode(buffer))


def rng_meta(rng: np.random.Generator) -> dict[str, Any]:
    """Return where a generator stands; its numbers have 128 bits, so they are written as text."""
    meta: dict[str, Any] = _written(rng.bit_generator.state)
    return meta


def set_rng(rng: np.random.Generator, meta: Mapping[str, Any]) -> None:
    """Put a generator where another of its kind stood."""
    rng.bit_generator.state = _read(meta)


def require_same(name: str, stored: object, own: object) -> None:
    """Refuse a state of another shape than the role's that is to take it over."""
    if stored != own:
        raise RunError(f"{name} of the checkpoint must be {own!s:.200}, as the settings say, got {stored!s:.200}")


def _written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _written(item) for name, item in value.items()}
    return f"int {value}" if isinstance(value, int) else value


def _read(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _read(item) for name, item in value.items()}
    return int(value.removeprefix("int ")) if value.startswith("int ") else value
