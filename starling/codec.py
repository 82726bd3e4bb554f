"""Arrays <-> one buffer: a fixed prefix, a msgpack header, then raw values aligned to 64 bytes; no pickle.

    magic 8 | version u32 | header length u32 | header | padding | array 0 | padding | array 1 ...

The header holds `meta` and each array's name, dtype and shape. Offsets are not stored: every array begins at the
first multiple of 64 behind the one before it, so that a header cannot make arrays overlap or lie elsewhere.
Where a fourth item follows the shape, the array lies there as an LZ4 block of so many bytes: frames, of which little
changes from one to the next. Where the dtype is a list of fields, each with name, dtype and shape, the array is of
records, laid out as a C compiler would. Little-endian, deterministic: equal arrays in equal order give equal bytes.
"""

import struct
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from math import prod
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple

import lz4.block
import msgpack
import numpy as np
from numpy.typing import NDArray

from starling.errors import CodecError
from starling.types import Array, Columns

MAGIC = b"STARLING"
VERSION = 2
READABLE = (1, VERSION)  # in 1 there were no records
ALIGNMENT = 64  # a cache line, and what Ray gives the buffers that it stores

Octets = bytes | bytearray | memoryview | NDArray[np.uint8]
Entries = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Arrays by name, before their values are known: shape and dtype."""

_PREFIX = struct.Struct("<8sII")
_CODES = ("?", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
_DTYPES = {dtype.str: dtype for dtype in map(np.dtype, _CODES)}
_FRAMES = np.dtype(np.uint8)
_MAX_AXES = 32
_MAX_BYTES = 1 << 62  # as far as an address reaches
_MAX_DEPTH = 16
_PLAIN = frozenset((NoneType, bool, int, float, str))
_MIN_BLOCK, _MAX_BLOCK = 4 << 10, 0x7E000000  # bytes before compression: what pays, and what LZ4 can take
_WORTH = 0.75  # a block larger than this part of the values is not used
_KNOWN, _KNOWN_BYTES = 256, 2_048  # most messages say of their arrays what one before them said
_MAX_INFLATION = 255  # values in a byte of any LZ4 block: what a short message can make its reader allocate


class _Entry(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    block: int | None = None  # bytes, if the values are compressed

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize if self.block is None else self.block


class _Plan(NamedTuple):
    """What a header says."""

    placed: list[tuple[_Entry, int]]  # and where each begins
    meta: dict[str, Any]
    end: int


def encode(
    arrays: Mapping[str, Array], meta: Mapping[str, Any] = MappingProxyType({}), compress: bool = False
) -> NDArray[np.uint8]:
    """Pack arrays and a JSON-like `meta` into one buffer: one allocation, and one copy of each array.

    With `compress`, arrays of bytes are compressed where that makes them clearly smaller. Records travel with the
    padding between their fields: whoever makes them fills it with zeros.
    """
    blocks = [_block(array) if compress else None for array in arrays.values()]
    items = zip(arrays.items(), blocks, strict=True)
    entries = [_Entry(name, a.dtype, a.shape, None if block is None else len(block)) for (name, a), block in items]
    buffer, offsets = _lay_out(tuple(entries), meta, None)
    for array, block, offset in zip(arrays.values(), blocks, offsets, strict=True):
        if block is None:
            octets = _octets_of(array)
            np.ndarray(octets.shape, octets.dtype, buffer, offset)[...] = octets
        else:
            buffer[offset : offset + len(block)] = np.frombuffer(block, np.uint8)
    return buffer


def reserve(
    entries: Entries, meta: Mapping[str, Any] = MappingProxyType({}), room: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], Columns]:
    """Return what `encode` would for arrays of these kinds, and the arrays in it for the caller to fill.

    The buffer is the beginning of `room`, if that is large enough. Until they are filled the arrays hold anything.
    """
    items = tuple(_Entry(name, np.dtype(dtype), shape) for name, (shape, dtype) in entries.items())
    buffer, offsets = _lay_out(items, meta, room)
    return buffer, {e.name: np.ndarray(e.shape, e.dtype, buffer, at) for e, at in zip(items, offsets, strict=True)}


def decode(buffer: Octets) -> tuple[Columns, dict[str, Any]]:
    """Return the arrays and `meta`; CodecError for anything `encode` cannot write.

    The arrays are read-only, and views into `buffer` where they are not compressed. A flipped byte among the values
    themselves goes unseen: checksums belong to files, where they are read once.
    """
    octets = _octets(buffer)
    header = _header(octets)
    plan = _known_plan(header) if len(header) <= _KNOWN_BYTES else _plan(header)
    if len(octets) != plan.end:
        raise CodecError(f"buffer must be {plan.end} bytes, as its header says, got {len(octets)}")
    arrays: Columns = {
        name: np.ndarray(shape, dtype, octets, offset)
        if block is None
        else _inflated(name, shape, block, octets, offset)
        for (name, dtype, shape, block), offset in plan.placed
    }
    return arrays, deepcopy(plan.meta) if plan.meta else {}


def _lay_out(
    entries: tuple[_Entry, ...], meta: Mapping[str, Any], room: NDArray[np.uint8] | None
) -> tuple[NDArray[np.uint8], list[int]]:
    """Return a buffer with everything but the arrays' values, and where each of them begins."""
    head, offsets, end = _head(entries, meta) if meta else _known_head(entries)
    if room is None or room.size < end:
        buffer = np.zeros(end, np.uint8)  # zeros, so that the padding says nothing about this process's memory
    else:
        buffer = room[:end]
        ends = [len(head), *(offset + entry.num_bytes for entry, offset in zip(entries, offsets, strict=True))]
        for begin, offset in zip(ends, offsets, strict=False):
            buffer[begin:offset] = 0
    buffer[: len(head)] = np.frombuffer(head, np.uint8)
    return buffer, offsets


def _head(entries: tuple[_Entry, ...], meta: Mapping[str, Any] = MappingProxyType({})) -> tuple[bytes, list[int], int]:
    """Return what stands before the arrays, where each of them begins, and where the last one ends."""
    header = _pack(dict(meta), [_described(entry) for entry in entries])
    head = _PREFIX.pack(MAGIC, VERSION, len(header)) + header
    return head, *_place(len(head), (entry.num_bytes for entry in entries))


_known_head = lru_cache(_KNOWN)(_head)


def _block(array: Array) -> bytes | None:
    """Return a large array of bytes compressed, or None where that would gain little."""
    if array.dtype != _FRAMES or not _MIN_BLOCK <= array.nbytes <= _MAX_BLOCK:
        return None
    block: bytes = lz4.block.compress(np.ascontiguousarray(array), store_size=False)
    return block if len(block) <= _WORTH * array.nbytes else None


def _octets_of(array: Array) -> Array:
    """Return records as what numpy copies several times faster, the padding between their fields included."""
    return array if array.dtype.names is None else array.view(f"V{array.itemsize}")


def _inflated(name: str, shape: tuple[int, ...], block: int, octets: memoryview, offset: int) -> Array:
    size = prod(shape)
    try:
        values = lz4.block.decompress(octets[offset : offset + block], uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise CodecError(f"array {name!r:.100} must be an LZ4 block of {size} bytes, got {error}") from error
    if len(values) != size:
        raise CodecError(f"array {name!r:.100} must be an LZ4 block of {size} bytes, got one of {len(values)}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _place(start: int, sizes: Iterable[int]) -> tuple[list[int], int]:
    """Return where each array begins, and where the last one ends."""
    offsets, end = [], start
    for size in sizes:
        offsets.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = offsets[-1] + size
    return offsets, end


def _described(entry: _Entry) -> list[Any]:
    code = _code(entry.dtype)
    if _dtype(code) != entry.dtype or len(entry.shape) > _MAX_AXES:
        raise CodecError(
            f"array {entry.name!r} must be of bools or little-endian numbers with at most {_MAX_AXES} axes, "
            f"or of aligned records of them, got {entry.dtype} with {len(entry.shape)}"
        )
    item = [entry.name, code, list(entry.shape)]
    return item if entry.block is None else [*item, entry.block]


def _code(dtype: np.dtype[Any]) -> Any:
    """Return what a header says of a dtype, whether or not it may."""
    if dtype.names is None:
        return dtype.str
    return [[name, dtype[name].base.str, list(dtype[name].shape)] for name in dtype.names]


def _dtype(code: Any) -> np.dtype[Any] | None:
    """Return the dtype that a header means, or None if it may not say so."""
    if not isinstance(code, list):
        return _DTYPES.get(code) if isinstance(code, str) else None
    fields = []
    for field in code:
        match field:
            case [str(name), str(number), shape] if name and number in _DTYPES and is_shape(shape):
                fields.append((name, _DTYPES[number], tuple(shape)))
            case _:
                return None
    try:
        return np.dtype(fields, align=True) if fields else None
    except ValueError:  # a name twice, or more bytes than numpy can count
        return None


def _pack(meta: dict[str, Any], entries: list[list[Any]]) -> bytes:
    if not _is_plain(meta, _MAX_DEPTH - 1) or any(type(name) is not str for name, *_ in entries):
        raise CodecError("names must be strings and meta must be None, bools, ints, floats, strings, lists and dicts")
    try:
        return bytes(msgpack.packb({"meta": meta, "arrays": entries}))
    except (ValueError, OverflowError) as error:  # a lone surrogate, an int of more than 64 bits
        raise CodecError(f"names and meta must fit msgpack, got {error}") from error


def _octets(buffer: Octets) -> memoryview:
    """Return the bytes, read-only; numpy places arrays in a memoryview faster than in an array."""
    try:
        return np.frombuffer(buffer, np.uint8).data.toreadonly()
    except ValueError as error:
        raise CodecError(f"buffer must be contiguous bytes, got {error}") from error


def _header(octets: memoryview) -> bytes:
    if len(octets) < _PREFIX.size:
        raise CodecError(f"buffer must begin with {_PREFIX.size} fixed bytes, got {len(octets)} bytes in all")
    magic, version, length = _PREFIX.unpack_from(octets)
    if magic != MAGIC:
        raise CodecError(f"buffer must begin with {MAGIC!r}, got {magic!r}")
    if version not in READABLE:
        raise CodecError(f"version of the encoding must be {' or '.join(map(str, READABLE))}, got {version}")
    end = _PREFIX.size + length
    if end > len(octets):
        raise CodecError(f"header must end within the buffer, got {end} of {len(octets)} bytes")
    return octets[_PREFIX.size : end].tobytes()


def _plan(header: bytes) -> _Plan:
    try:  # msgpack refuses by itself what claims to be longer than the header
        entries, meta = _parts(msgpack.unpackb(header))
    except ValueError as error:
        raise CodecError(f"header must be msgpack, got {error!r}") from error
    offsets, end = _place(_PREFIX.size + len(header), (entry.num_bytes for entry in entries))
    return _Plan(list(zip(entries, offsets, strict=True)), meta, end)


_known_plan = lru_cache(_KNOWN)(_plan)


def _parts(header: Any) -> tuple[list[_Entry], dict[str, Any]]:
    match header:
        case {"meta": dict(meta), "arrays": list(items)} if len(header) == 2 and _is_plain(meta):
            entries = [_entry(item) for item in items]
        case _:
            raise CodecError("header must hold a plain meta and a list of arrays, and nothing else")
    if len({entry.name for entry in entries}) != len(entries):
        raise CodecError("arrays must have different names, got one twice")
    return entries, meta


def _entry(item: Any) -> _Entry:
    match item:
        case [str(name), code, shape] if is_shape(shape):
            dtype = _dtype(code)
            if dtype is not None and is_shape(shape, dtype.itemsize):
                return _Entry(name, dtype, tuple(shape))
        case [str(name), _FRAMES.str, shape, int(block)] if is_shape(shape) and _may_be(block, prod(shape)):
            return _Entry(name, _FRAMES, tuple(shape), block)
    raise CodecError(f"header must give each array's name, dtype and shape, got {item!s:.100}")


def _may_be(block: int, size: int) -> bool:
    """Say whether a block of these bytes can hold so many values; the answer bounds what decoding allocates."""
    return type(block) is int and 0 < block < size <= min(_MAX_BLOCK, _MAX_INFLATION * block)


def is_shape(shape: object, item_bytes: int = 8) -> bool:
    """Say whether numpy could hold such an array; whether this buffer does is its size's business."""
    if not isinstance(shape, list) or len(shape) > _MAX_AXES:
        return False
    size = item_bytes or 1
    for length in shape:  # a loop: this is asked of every array of every message
        if type(length) is not int or length < 0:
            return False
        size *= length or 1
    return size <= _MAX_BYTES


def _is_plain(value: object, depth: int = _MAX_DEPTH) -> bool:
    """Say whether a value survives a round trip unchanged."""
    if type(value) in _PLAIN:
        return True
    if type(value) is dict:
        return depth > 0 and all(type(key) is str and _is_plain(inner, depth - 1) for key, inner in value.items())
    return type(value) is list and depth > 0 and all(_is_plain(inner, depth - 1) for inner in value)
