"""What the roles send one another, as one buffer each through the codec."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starling.codec import Octets, decode, encode, is_shape
from starling.errors import CodecError
from starling.params import Layout, Params
from starling.types import Columns, SampleReply, SampleRequest, Unroll

_COLUMN, _EPISODE = "column/", "episode/"


def encode_unroll(unroll: Unroll) -> NDArray[np.uint8]:
    """Pack every field of an unroll into one buffer."""
    arrays = {_COLUMN + name: column for name, column in unroll.columns.items()}
    arrays |= {_EPISODE + name: column for name, column in unroll.episodes.items()}
    arrays |= {"final_at": unroll.final_at, "final_obs": unroll.final_obs}
    optional = {"next_obs": unroll.next_obs, "priorities": unroll.priorities}
    arrays |= {name: array for name, array in optional.items() if array is not None}
    return encode(arrays, {"unroll": [unroll.actor, unroll.generation, unroll.sequence]})


def decode_unroll(buffer: Octets) -> Unroll:
    """Return the unroll whose arrays are read-only views into `buffer`."""
    arrays, meta = decode(buffer)
    match arrays, meta:
        case {"final_at": final_at, "final_obs": final_obs}, {"unroll": [int(actor), int(generation), int(sequence)]}:
            return Unroll(
                actor=actor,
                generation=generation,
                sequence=sequence,
                columns=_under(_COLUMN, arrays),
                final_at=final_at,
                final_obs=final_obs,
                next_obs=arrays.get("next_obs"),
                priorities=arrays.get("priorities"),
                episodes=_under(_EPISODE, arrays),
            )
    raise CodecError(f"buffer must hold an unroll, got arrays {sorted(arrays)} and meta {sorted(meta)}")


def encode_params(params: Params) -> NDArray[np.uint8]:
    """Pack parameters as the one array that they are, their layout beside it."""
    layout = [[name, list(shape)] for name, shape in params.layout.entries]
    return encode({"params": params.buffer}, {"layout": layout})


def decode_params(buffer: Octets) -> Params:
    """Return the parameters as a read-only view into `buffer`."""
    arrays, meta = decode(buffer)
    match arrays, meta:
        case {"params": values}, {"layout": list(entries)}:
            layout = Layout(tuple(map(_layout_entry, entries)))
            if values.dtype == np.float32 and values.shape == (layout.size,):
                return Params(layout, values)
    raise CodecError(
        f"buffer must hold parameters and their layout, got arrays {sorted(arrays)} and meta {sorted(meta)}"
    )


def encode_request(request: SampleRequest) -> NDArray[np.uint8]:
    """Pack what the learner asks of one shard."""
    meta = {
        "counts": list(request.counts),
        "insert_limit": request.insert_limit,
        "largest_priority": request.largest_priority,
        "generation": request.generation,
    }
    return encode({"keys": request.keys, "priorities": request.priorities}, meta)


def decode_request(buffer: Octets) -> SampleRequest:
    """Return the request whose arrays are read-only views into `buffer`."""
    arrays, meta = decode(buffer)
    if arrays.keys() != {"keys", "priorities"} or meta.keys() != {
        "counts",
        "insert_limit",
        "largest_priority",
        "generation",
    }:
        raise CodecError(f"buffer must hold a sample request, got arrays {sorted(arrays)} and meta {sorted(meta)}")
    return SampleRequest(keys=arrays["keys"], priorities=arrays["priorities"], **meta)


def encode_reply(reply: SampleReply) -> NDArray[np.uint8]:
    """Pack a shard's answer."""
    arrays = {_COLUMN + name: column for name, column in reply.columns.items()}
    arrays |= {"keys": reply.keys, "probabilities": reply.probabilities}
    meta = {"counts": list(reply.counts), "mass": reply.mass, "size": reply.size, "inserted": reply.inserted}
    meta |= {"origin": reply.origin}
    return encode(arrays, meta)


def decode_reply(buffer: Octets) -> SampleReply:
    """Return the answer whose arrays are read-only views into `buffer`."""
    arrays, meta = decode(buffer)
    if not {"keys", "probabilities"} <= arrays.keys() or meta.keys() != {
        "counts",
        "mass",
        "size",
        "inserted",
        "origin",
    }:
        raise CodecError(f"buffer must hold a sample reply, got arrays {sorted(arrays)} and meta {sorted(meta)}")
    return SampleReply(
        columns=_under(_COLUMN, arrays), keys=arrays["keys"], probabilities=arrays["probabilities"], **meta
    )


def _under(prefix: str, arrays: Columns) -> Columns:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _layout_entry(entry: Any) -> tuple[str, tuple[int, ...]]:
    match entry:
        case [str(name), shape] if is_shape(shape):
            return name, tuple(shape)
    raise CodecError(f"layout must give names and shapes, got {entry!s:.100}")
