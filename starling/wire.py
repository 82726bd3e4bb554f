"""What the roles send one another, as one buffer each through the codec."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starling.codec import Entries, Octets, decode, encode, is_shape, reserve
from starling.errors import CodecError
from starling.packed import COLUMN, EPISODE, NEXT, START, PackedUnroll, pack, under, unpack
from starling.params import Layout, Params
from starling.seal import SEAL, sealed
from starling.types import Array, Columns, SampleReply, SampleRequest, Unroll

_UNROLL = {"rows", "final_at", "column/acted", "unroll"}  # what no unroll is without

_INT, _FLOAT, _BOOL = np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.bool_)

Make = Callable[[Entries], Columns]
"""Returns arrays of these shapes and types by name, to be filled."""


def encode_unroll(unroll: Unroll | PackedUnroll, compress: bool = True) -> NDArray[np.uint8]:
    """Pack every field of an unroll into one sealed buffer, its frames compressed."""
    packed = pack(unroll)
    who = np.array([packed.actor, packed.generation, packed.sequence])
    return sealed(encode({**packed.arrays, "unroll": who}, compress=compress))


def decode_packed(buffer: Octets) -> PackedUnroll:
    """Return the unroll as it travelled; its arrays are read-only, and views into `buffer` but for compressed frames.

    The seal is for those who read it from a disk.
    """
    arrays, meta = decode(buffer[: -SEAL.size])
    if arrays.keys() >= _UNROLL:
        rows, final_at, who = arrays["rows"], arrays["final_at"], arrays["unroll"]
        of_steps = rows.ndim == 1 and NEXT in (rows.dtype.names or ()) and _is_grid(arrays["column/acted"])
        if of_steps and _is_int(final_at, final_at.size) and final_at.size <= rows.size and _is_int(who, 3):
            actor, generation, sequence = who.tolist()
            return PackedUnroll(actor, generation, sequence, arrays)
    raise CodecError(f"buffer must hold an unroll, got arrays {sorted(arrays)} and meta {sorted(meta)}")


def decode_unroll(buffer: Octets) -> Unroll:
    """Return the unroll, for those who look into it; CodecError if its parts are not those of one."""
    packed = decode_packed(buffer)
    try:
        return unpack(packed)
    except (ValueError, IndexError, KeyError) as error:
        raise CodecError(f"buffer must hold an unroll, got arrays that do not belong together: {error}") from error


def encode_whole(unroll: Unroll) -> NDArray[np.uint8]:
    """Pack every field of an unroll that is learned from whole: also what its rows hold that were no steps."""
    arrays = _within(COLUMN, unroll.columns) | _within(EPISODE, unroll.episodes) | _within(START, unroll.starts)
    arrays |= {"final_at": unroll.final_at, "final_obs": unroll.final_obs, "start_at": unroll.start_at}
    if unroll.next_obs is not None:
        arrays["next_obs"] = unroll.next_obs
    arrays["unroll"] = np.array([unroll.actor, unroll.generation, unroll.sequence])
    return encode(arrays, compress=True)


def decode_whole(buffer: Octets) -> Unroll:
    """Return the unroll; its arrays are read-only, and views into `buffer` but for compressed frames."""
    arrays, meta = decode(buffer)
    match arrays:
        case {"final_at": final_at, "final_obs": final_obs, "start_at": start_at, "unroll": who} if _is_int(who, 3):
            actor, generation, sequence = who.tolist()
            return Unroll(
                actor=actor,
                generation=generation,
                sequence=sequence,
                columns=under(COLUMN, arrays),
                final_at=final_at,
                final_obs=final_obs,
                next_obs=arrays.get("next_obs"),
                episodes=under(EPISODE, arrays),
                start_at=start_at,
                starts=under(START, arrays),
            )
    raise CodecError(f"buffer must hold a whole unroll, got arrays {sorted(arrays)} and meta {sorted(meta)}")


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
    """Pack what the learner asks of one shard; as arrays alone, so that one header serves many requests."""
    return encode(
        {
            "keys": request.keys,
            "priorities": request.priorities,
            "asked": np.array([request.insert_limit, request.generation, *request.counts], np.int64),
            "largest": np.array(request.largest_priority, np.float64),
        }
    )


def decode_request(buffer: Octets) -> SampleRequest:
    """Return the request whose arrays are read-only views into `buffer`."""
    arrays, meta = decode(buffer)
    match arrays:
        case {"keys": keys, "priorities": priorities, "asked": asked, "largest": largest}:
            if _is_int(asked, max(2, asked.size)) and largest.shape == ():
                insert_limit, generation, *counts = asked.tolist()
                return SampleRequest(
                    counts=counts,
                    keys=keys,
                    priorities=priorities,
                    insert_limit=insert_limit,
                    largest_priority=largest.item(),
                    generation=generation,
                )
    raise CodecError(f"buffer must hold a sample request, got arrays {sorted(arrays)} and meta {sorted(meta)}")


def encode_reply(reply: SampleReply) -> NDArray[np.uint8]:
    """Pack a shard's answer."""
    return encode({**_within(COLUMN, reply.windows), **_others(reply)})


def decode_reply(buffer: Octets) -> SampleReply:
    """Return the answer whose arrays are read-only views into `buffer`."""
    arrays, meta = decode(buffer)
    match arrays:
        case {"keys": keys, "probabilities": probabilities, "tally": tally, "mass": mass}:
            if _is_int(tally, max(3, tally.size)) and mass.shape == ():
                size, inserted, origin, *counts = tally.tolist()
                return SampleReply(
                    counts=counts,
                    windows=under(COLUMN, arrays),
                    keys=keys,
                    probabilities=probabilities,
                    mass=mass.item(),
                    size=size,
                    inserted=inserted,
                    origin=origin,
                    starts=under(START, arrays),
                )
    raise CodecError(f"buffer must hold a sample reply, got arrays {sorted(arrays)} and meta {sorted(meta)}")


class Answers:
    """Packs one shard's answers, each gathered where it will be sent from: no array of windows is copied.

    They use the same memory, so one is good until the next is asked for. Called from one thread.
    """

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)
        self._kind: tuple[Entries, int] = {}, 0  # of what is reserved
        self._buffer = self._room
        self._windows: Columns = {}
        self._others: Columns = {}
        self._starts: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}  # of one window, as the last answer had it

    def pack(self, sample: Callable[[SampleRequest, Make], SampleReply], request: Octets) -> NDArray[np.uint8]:
        """Answer one request; `sample` may take the arrays of its windows from what it is handed."""
        asked = decode_request(request)
        reply = sample(asked, lambda entries: self._reserve(entries, len(asked.counts)))
        starts = {name: (start.shape[1:], start.dtype) for name, start in reply.starts.items()}
        if reply.windows is not self._windows or starts != self._starts:  # the first answer, or nothing was gathered
            self._starts, self._kind = starts, ({}, 0)
            return encode_reply(reply)
        for name, array in _others(reply).items():
            self._others[name][...] = array
        return self._buffer

    def _reserve(self, entries: Entries, batches: int) -> Columns:
        """Return the arrays for windows of these kinds."""
        if (entries, batches) != self._kind:
            windows = entries["valid"][0][1]
            whole = {COLUMN + name: entry for name, entry in entries.items()}
            whole |= {START + name: ((windows, *shape), dtype) for name, (shape, dtype) in self._starts.items()}
            whole |= {"keys": ((windows,), _INT), "probabilities": ((windows,), _FLOAT)}
            whole |= {"tally": ((3 + batches,), _INT), "mass": ((), _FLOAT)}
            self._buffer, arrays = reserve(whole, room=self._room)
            self._room = max(self._room, self._buffer, key=len)
            self._kind, self._windows = (dict(entries), batches), under(COLUMN, arrays)
            self._others = {name: array for name, array in arrays.items() if not name.startswith(COLUMN)}
        return self._windows


def _others(reply: SampleReply) -> Columns:
    """Return what an answer says beside the columns, as arrays alone: their header is known before the windows are."""
    return {
        **_within(START, reply.starts),
        "keys": reply.keys,
        "probabilities": reply.probabilities,
        "tally": np.array([reply.size, reply.inserted, reply.origin, *reply.counts], np.int64),
        "mass": np.array(reply.mass),
    }


def _is_int(array: Array, length: int) -> bool:
    return array.dtype == _INT and array.shape == (length,)


def _is_grid(acted: Array) -> bool:
    return acted.dtype == _BOOL and acted.ndim == 2 and acted.size > 0


def _within(prefix: str, arrays: Columns) -> Columns:
    return {prefix + name: array for name, array in arrays.items()}


def _layout_entry(entry: Any) -> tuple[str, tuple[int, ...]]:
    match entry:
        case [str(name), shape] if is_shape(shape):
            return name, tuple(shape)
    raise CodecError(f"layout must give names and shapes, got {entry!s:.100}")
