"""What workers and slices of the parameters send one another, as one buffer each through the codec."""

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from starling.codec import Octets, decode, encode
from starling.errors import CodecError
from starling.gradients import Push, Pushed, Refusal
from starling.types import Columns

REFUSALS: tuple[Refusal, ...] = get_args(Refusal)


def encode_push(push: Push) -> NDArray[np.uint8]:
    """Pack one slice's part of a gradient."""
    sender = [push.worker, push.generation, push.step, push.version]
    return encode({"gradient": push.gradient}, {"push": sender, "norm": push.norm, "env_steps": push.env_steps})


def decode_push(buffer: Octets) -> Push:
    """Return the push whose gradient is a read-only view into `buffer`."""
    arrays, meta = decode(buffer)
    match arrays, meta:
        case (
            {"gradient": gradient},
            {
                "push": [int(worker), int(generation), int(step), int(version)],
                "norm": float(norm),
                "env_steps": int(env_steps),
            },
        ) if _is_vector(gradient):
            return Push(
                worker=worker,
                generation=generation,
                step=step,
                version=version,
                gradient=gradient,
                norm=norm,
                env_steps=env_steps,
            )
    raise _misfit("a push", arrays, meta)


def encode_pushed(pushed: Pushed) -> NDArray[np.uint8]:
    """Pack a slice's answer."""
    return encode({"values": pushed.values}, {"version": pushed.version, "why": pushed.why})


def decode_pushed(buffer: Octets) -> Pushed:
    """Return the answer whose values are a read-only view into `buffer`."""
    arrays, meta = decode(buffer)
    match arrays, meta:
        case {"values": values}, {"version": int(version), "why": why} if _is_vector(values) and why in REFUSALS:
            return Pushed(version=version, values=values, applied=not why, why=why)
    raise _misfit("the answer to a push", arrays, meta)


def _is_vector(values: NDArray[Any]) -> bool:
    return values.dtype == np.float32 and values.ndim == 1


def _misfit(what: str, arrays: Columns, meta: dict[str, Any]) -> CodecError:
    return CodecError(f"buffer must hold {what}, got arrays {sorted(arrays)} and meta {sorted(meta)}")
