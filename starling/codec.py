"""Arrays <-> one buffer: a fixed prefix, a msgpack header, then raw values aligned to 64 bytes; no pickle.

    magic 8 | version u32 | header length u32 | header | padding | array 0 | padding | array 1 ...

The header holds `meta` and each array's name, dtype and shape. Offsets are not stored: every array begins at the
first multiple of 64 behind the one before it, so that a header cannot make arrays overlap or lie elsewhere.
Little-endian, deterministic: equal arrays in equal order give equal bytes.
"""

import struct
from collections.abc import Iterable, Mapping
from math import prod
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from starling.errors import CodecError
from starling.types import Array, Columns

MAGIC = b"STARLING"
VERSION = 1
ALIGNMENT = 64  # a cache line, and what Ray gives the buffers that it stores

Octets = bytes | bytearray | memoryview | NDArray[np.uint8]

_PREFIX = struct.Struct("<8sII")
_CODES = ("?", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
_DTYPES = {dtype.str: dtype for dtype in map(np.dtype, _CODES)}
_MAX_AXES = 32
_MAX_VALUES = 1 << 59  # of 8 bytes each: as far as an address reaches
_MAX_DEPTH = 16
_PLAIN = frozenset((NoneType, bool, int, float, str))


class _Entry(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    shape: list[int]


def encode(arrays: Mapping[str, Array], meta: Mapping[str, Any] = MappingProxyType({})) -> NDArray[np.uint8]:
    """Pack arrays and a JSON-like `meta` into one buffer: one allocation, and one copy of each array."""
    entries = [[name, _code(name, array), list(array.shape)] for name, array in arrays.items()]
    header = _pack(dict(meta), entries)
    head = _PREFIX.pack(MAGIC, VERSION, len(header)) + header
    offsets, end = _place(len(head), (array.nbytes for array in arrays.values()))
    buffer = np.zeros(end, np.uint8)  # zeros, so that the padding says nothing about this process's memory
    buffer[: len(head)] = np.frombuffer(head, np.uint8)
    for array, offset in zip(arrays.values(), offsets, strict=True):
        np.ndarray(array.shape, array.dtype, buffer, offset)[...] = array
    return buffer


def decode(buffer: Octets) -> tuple[Columns, dict[str, Any]]:
    """Return the arrays, as read-only views into `buffer`, and `meta`; CodecError for anything `encode` cannot write.

    A flipped byte among the values themselves goes unseen: checksums belong to files, where they are read once.
    """
    octets = _octets(buffer)
    header, header_end = _header(octets)
    entries, meta = _parts(header)
    offsets, end = _place(header_end, (prod(entry.shape) * entry.dtype.itemsize for entry in entries))
    if octets.size != end:
        raise CodecError(f"buffer must be {end} bytes, as its header says, got {octets.size}")
    placed = zip(entries, offsets, strict=True)
    return {name: np.ndarray(shape, dtype, octets, offset) for (name, dtype, shape), offset in placed}, meta


def _place(start: int, sizes: Iterable[int]) -> tuple[list[int], int]:
    """Return where each array begins, and where the last one ends."""
    offsets, end = [], start
    for size in sizes:
        offsets.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = offsets[-1] + size
    return offsets, end


def _code(name: str, array: Array) -> str:
    code = array.dtype.str
    if code not in _DTYPES or array.ndim > _MAX_AXES:
        raise CodecError(
            f"array {name!r} must be of bools or little-endian numbers with at most {_MAX_AXES} axes, "
            f"got {array.dtype} with {array.ndim}"
        )
    return code


def _pack(meta: dict[str, Any], entries: list[list[Any]]) -> bytes:
    if not _is_plain(meta, _MAX_DEPTH - 1) or any(type(name) is not str for name, _, _ in entries):
        raise CodecError("names must be strings and meta must be None, bools, ints, floats, strings, lists and dicts")
    try:
        return bytes(msgpack.packb({"meta": meta, "arrays": entries}))
    except (ValueError, OverflowError) as error:  # a lone surrogate, an int of more than 64 bits
        raise CodecError(f"names and meta must fit msgpack, got {error}") from error


def _octets(buffer: Octets) -> NDArray[np.uint8]:
    try:
        octets = np.frombuffer(buffer, np.uint8)
    except ValueError as error:
        raise CodecError(f"buffer must be contiguous bytes, got {error}") from error
    octets.flags.writeable = False
    return octets


def _header(octets: NDArray[np.uint8]) -> tuple[Any, int]:
    if octets.size < _PREFIX.size:
        raise CodecError(f"buffer must begin with {_PREFIX.size} fixed bytes, got {octets.size} bytes in all")
    magic, version, length = _PREFIX.unpack(octets[: _PREFIX.size].tobytes())
    if magic != MAGIC:
        raise CodecError(f"buffer must begin with {MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise CodecError(f"version of the encoding must be {VERSION}, got {version}")
    end = _PREFIX.size + length
    if end > octets.size:
        raise CodecError(f"header must end within the buffer, got {end} of {octets.size} bytes")
    try:  # msgpack refuses by itself what claims to be longer than the header
        return msgpack.unpackb(octets[_PREFIX.size : end]), end
    except ValueError as error:
        raise CodecError(f"header must be msgpack, got {error!r}") from error


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
        case [str(name), str(code), shape] if code in _DTYPES and is_shape(shape):
            return _Entry(name, _DTYPES[code], shape)
    raise CodecError(f"header must give each array's name, dtype and shape, got {item!s:.100}")


def is_shape(shape: object) -> bool:
    """Say whether numpy could hold such an array; whether this buffer does is its size's business."""
    if not isinstance(shape, list) or len(shape) > _MAX_AXES:
        return False
    values = 1
    for length in shape:  # a loop: this is asked of every array of every message
        if type(length) is not int or length < 0:
            return False
        values *= length or 1
    return values <= _MAX_VALUES


def _is_plain(value: object, depth: int = _MAX_DEPTH) -> bool:
    """Say whether a value survives a round trip unchanged."""
    if type(value) in _PLAIN:
        return True
    if type(value) is dict:
        return depth > 0 and all(type(key) is str and _is_plain(inner, depth - 1) for key, inner in value.items())
    return type(value) is list and depth > 0 and all(_is_plain(inner, depth - 1) for inner in value)
