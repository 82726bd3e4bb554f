import struct
from collections.abc import Callable, Mapping
from typing import Any

import lz4.block
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from starling.codec import ALIGNMENT, MAGIC, VERSION, decode, encode, reserve
from starling.errors import CodecError

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
arrays_of_any_kind = st.dictionaries(
    st.text(max_size=8),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    max_size=5,
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def some_arrays() -> dict[str, NDArray[Any]]:
    return {
        "obs": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "done": np.array([True, False, True]),
        "step": np.array(7),
        "none": np.zeros((0, 3), np.uint8),
        "half": np.linspace(0, 1, 5, dtype=np.float16),
    }


def framed(
    header: Any, body: bytes = b"", magic: bytes = MAGIC, version: int = VERSION, length: int | None = None
) -> bytes:
    """Write by hand what `encode` would not."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    head = struct.pack("<8sII", magic, version, len(packed) if length is None else length) + packed
    return head.ljust(-(-len(head) // ALIGNMENT) * ALIGNMENT, b"\0") + body if body else head


def header_of(*entries: Any, **meta: Any) -> dict[str, Any]:
    return {"meta": meta, "arrays": list(entries)}


def aligned_copy(buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    room = np.empty(buffer.size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    room[start : start + buffer.size] = buffer
    return room[start : start + buffer.size]


def assert_same(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array, strict=True)


@given(arrays=arrays_of_any_kind, meta=st.dictionaries(st.text(max_size=8), plain, max_size=3))
def test_what_is_encoded_is_decoded(arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    got, got_meta = decode(encode(arrays, meta))

    assert_same(got, arrays)
    assert got_meta == meta


def some_records() -> NDArray[Any]:
    dtype = np.dtype([("action", "<i8"), ("obs", "<f4", (2, 3)), ("ended", "?")], align=True)
    records = np.zeros((4, 2), dtype)
    records["action"] = np.arange(8).reshape(4, 2)
    records["obs"] = np.arange(48).reshape(4, 2, 2, 3)
    records["ended"][1] = True
    return records


def test_records_come_back_as_they_were_and_nothing_is_copied() -> None:
    arrays = {"steps": some_records(), "half": some_records()[::2, 0], "none": some_records()[:0]}
    buffer = encode(arrays)

    got, _ = decode(buffer)

    assert_same(got, arrays)
    assert np.shares_memory(got["steps"]["obs"], buffer)


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview, np.asarray])
def test_every_kind_of_bytes_is_read(view: Callable[[Any], Any]) -> None:
    assert_same(decode(view(encode(some_arrays())))[0], some_arrays())


def test_arrays_that_are_not_contiguous_are_packed_by_value() -> None:
    frames = np.arange(60).reshape(3, 4, 5)
    arrays = {
        "transposed": frames.T,
        "strided": frames[:, ::-2, 1::2],
        "broadcast": np.broadcast_to(frames[0], (2, 4, 5)),
    }

    assert_same(decode(encode(arrays))[0], arrays)


def test_equal_arrays_give_equal_bytes() -> None:
    assert bytes(encode(some_arrays(), {"a": 1})) == bytes(encode(some_arrays(), {"a": 1}))


def test_decoding_copies_nothing() -> None:
    buffer = encode(some_arrays())

    arrays, _ = decode(buffer)

    assert all(np.shares_memory(array, buffer) for array in arrays.values() if array.size)


def test_decoded_arrays_are_read_only_and_the_buffer_stays_as_it_was() -> None:
    buffer = encode(some_arrays())

    arrays, _ = decode(buffer)

    assert not any(array.flags.writeable for array in arrays.values())
    assert buffer.flags.writeable


def test_in_an_aligned_buffer_every_array_is_aligned() -> None:
    arrays, _ = decode(aligned_copy(encode(some_arrays())))

    assert {array.ctypes.data % ALIGNMENT for array in arrays.values() if array.size} == {0}


def test_a_buffer_at_an_odd_address_is_read_all_the_same() -> None:
    shifted = memoryview(b"x" + bytes(encode(some_arrays())))[1:]

    assert_same(decode(shifted)[0], some_arrays())


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.zeros(2, [("a", "u1"), ("b", "f4")]),
        np.zeros(2, [("a", ">f4")]),
        np.array(["2026-01-01"], "M8[D]"),
        np.array([1], "m8[s]"),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array([1j]),
        np.array([1.0], ">f4"),
        np.zeros((1,) * 33),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_that_are_no_plain_numbers_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(CodecError, match="array 'x' must be"):
        encode({"x": array})


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: 2}, b"raw", np.float64(1.0), np.int64(1), 2**64, "\ud800", {1, 2}, msgpack.Timestamp(0), len],
    ids=repr,
)
def test_meta_that_would_not_come_back_as_it_was_is_refused(value: Any) -> None:
    with pytest.raises(CodecError):
        encode({}, {"value": value})


def test_meta_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(CodecError):
        encode({}, {"loop": loop})


def test_every_truncation_is_refused() -> None:
    whole = bytes(encode(some_arrays(), {"note": "n"}))

    for length in range(len(whole)):
        with pytest.raises(CodecError):
            decode(whole[:length])


def test_anything_behind_the_last_array_is_refused() -> None:
    with pytest.raises(CodecError, match="buffer must be"):
        decode(bytes(encode(some_arrays())) + b"\0")


def test_a_message_of_the_first_version_is_read() -> None:
    arrays, meta = decode(framed(header_of(FLOATS, a=1), np.array([3.0, 4.0], "<f4").tobytes(), version=1))

    assert (arrays["x"].tolist(), meta) == ([3.0, 4.0], {"a": 1})


FLOATS = ["x", "<f4", [2]]


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (framed(header_of(), magic=b"STARLINK"), "must begin with b'STARLING', got b'STARLINK'"),
        (framed(header_of(), version=3), "version of the encoding must be 1 or 2, got 3"),
        (framed(header_of(), length=2**32 - 1), "header must end within the buffer"),
        (framed(b"", length=0), "header must be msgpack"),
        (framed(b"\xdd\xff\xff\xff\xff"), "header must be msgpack"),  # an array of 4 billion items
        (framed(b"\xc6\xff\xff\xff\xff"), "header must be msgpack"),  # 4 GB of bytes
        (framed(b"\x91" * 100_000 + b"\x01"), "header must be msgpack"),  # nested 100,000 deep
        (framed(msgpack.packb(header_of()) + b"\x01"), "header must be msgpack"),
        (framed([]), "header must hold"),
        (framed({"meta": {}}), "header must hold"),
        (framed({"meta": {}, "arrays": [], "more": 1}), "header must hold"),
        (framed(header_of(when=msgpack.Timestamp(0))), "header must hold a plain meta"),
        (framed(header_of(FLOATS, FLOATS), bytes(128)), "different names"),
        (framed(header_of(["x", "|O", [1]]), bytes(8)), "name, dtype and shape"),
        (framed(header_of(["x", ">f4", [1]]), bytes(8)), "name, dtype and shape"),
        (framed(header_of(["x", "<f4", [-1]])), "name, dtype and shape"),
        (framed(header_of(["x", "<f4", [True]]), bytes(4)), "name, dtype and shape"),
        (framed(header_of(["x", "<f4", [1.0]]), bytes(4)), "name, dtype and shape"),
        (framed(header_of(["x", "<f4", [2**32, 2**32]])), "name, dtype and shape"),  # 0 modulo 2^64
        (framed(header_of(["x", "<f4", [0, 2**63]])), "name, dtype and shape"),
        (framed(header_of(["x", "<f4", [1] * 100]), bytes(4)), "name, dtype and shape"),
        (framed(header_of([["x"], "<f4", [1]]), bytes(4)), "name, dtype and shape"),
        (framed(header_of(["x", "<f4", [2**40]])), "buffer must be"),
        (framed(header_of(FLOATS, ["y", "<f4", [2]]), bytes(8)), "buffer must be"),
        (framed(header_of(["x", "|u1", [2550], 10]), bytes(10)), "'x' must be an LZ4 block of 2550 bytes"),
        (framed(header_of(["x", "|u1", [2551], 10]), bytes(10)), "name, dtype and shape"),  # more than any block holds
        (framed(header_of(["x", "|u1", [2**40], 2**39]), bytes(10)), "name, dtype and shape"),
        (framed(header_of(["x", "|u1", [10], 10]), bytes(10)), "name, dtype and shape"),  # nothing would be gained
        (framed(header_of(["x", "|u1", [0], 0])), "name, dtype and shape"),
        (framed(header_of(["x", "|u1", [10], -1])), "name, dtype and shape"),
        (framed(header_of(["x", "|u1", [10], True]), bytes(1)), "name, dtype and shape"),
        (framed(header_of(["x", "<f4", [10], 5]), bytes(5)), "name, dtype and shape"),
        (framed(header_of(["x", "|u1", [10], 5]), bytes(4)), "buffer must be"),
        (framed(header_of(["x", [], [1]])), "name, dtype and shape"),
        (framed(header_of(["x", [["a", "<f4", []], ["a", "<f4", []]], [1]]), bytes(8)), "name, dtype and shape"),
        (framed(header_of(["x", [["", "<f4", []]], [1]]), bytes(4)), "name, dtype and shape"),  # numpy would name it
        (framed(header_of(["x", [["a", "|O", []]], [1]]), bytes(8)), "name, dtype and shape"),
        (framed(header_of(["x", [["a", [["b", "<f4", []]], []]], [1]]), bytes(4)), "name, dtype and shape"),
        (framed(header_of(["x", [["a", "<f4", [2**40]]], [1]])), "name, dtype and shape"),
        (framed(header_of(["x", [["a", "<f4", [2**20]]], [2**45, 0]])), "name, dtype and shape"),
        (framed(header_of(["x", [["a", "<f4", []]], [2]]), bytes(4)), "buffer must be"),
    ],
)
def test_a_header_that_lies_is_refused_in_one_sentence(buffer: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message) as error:
        decode(buffer)

    assert "\n" not in str(error.value)


def frames(seed: int = 0) -> NDArray[np.uint8]:
    """Return what games show: little changes from one frame to the next."""
    rng = np.random.default_rng(seed)
    shown = np.zeros((8, 2, 42, 42), np.uint8)
    shown[:] = rng.integers(0, 2, (42, 42)) * 90
    shown[np.arange(8), :, np.arange(8), 5] = 200
    return shown


def test_frames_are_compressed_where_asked_for_and_come_back_as_they_were() -> None:
    arrays = {"frames": frames(), "strided": frames()[::2, ::-1], **some_arrays()}

    packed = encode(arrays, {"a": 1}, compress=True)

    assert packed.nbytes < encode(arrays, {"a": 1}).nbytes / 3
    assert_same(decode(packed)[0], arrays)
    assert not decode(packed)[0]["frames"].flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).integers(0, 256, 100_000, np.uint8),
        np.zeros(4_095, np.uint8),
        np.zeros((256, 16, 4), np.float32),
        np.zeros(100_000, np.bool_),
    ],
    ids=["noise", "small", "floats", "bools"],
)
def test_what_compression_would_not_make_clearly_smaller_travels_as_it_is(array: NDArray[Any]) -> None:
    assert bytes(encode({"x": array}, compress=True)) == bytes(encode({"x": array}))


def test_a_block_of_another_size_than_its_shape_is_refused() -> None:
    block = lz4.block.compress(bytes(1_000), store_size=False)

    for size in (999, 1_001):
        with pytest.raises(CodecError, match=f"'x' must be an LZ4 block of {size} bytes"):
            decode(framed(header_of(["x", "|u1", [size], len(block)]), block))


def test_reserved_arrays_are_the_buffers_own() -> None:
    arrays = some_arrays()

    buffer, places = reserve({name: (array.shape, array.dtype) for name, array in arrays.items()}, {"a": 1})
    for name, array in arrays.items():
        places[name][...] = array

    assert bytes(buffer) == bytes(encode(arrays, {"a": 1}))


def test_room_that_was_used_before_is_used_again_and_says_nothing_of_that() -> None:
    arrays = some_arrays()
    room = np.full(10_000, 255, np.uint8)

    buffer, places = reserve({name: (array.shape, array.dtype) for name, array in arrays.items()}, {"a": 1}, room)
    for name, array in arrays.items():
        places[name][...] = array

    assert np.shares_memory(buffer, room)
    assert bytes(buffer) == bytes(encode(arrays, {"a": 1}))


def test_room_that_is_too_small_is_left_alone() -> None:
    room = np.full(100, 255, np.uint8)

    buffer, _ = reserve({"x": ((100,), np.dtype(np.float64))}, room=room)

    assert not np.shares_memory(buffer, room)
    assert (room == 255).all()


def test_a_buffer_with_holes_is_refused() -> None:
    with pytest.raises(CodecError, match="contiguous"):
        decode(np.repeat(encode(some_arrays()), 2)[::2])


@pytest.mark.parametrize(
    "arrays",
    [some_arrays(), {"frames": frames(), "step": np.array(7)}, {"steps": some_records()}],
    ids=["plain", "frames", "records"],
)
def test_a_thousand_mutations_are_refused_or_stay_inside_the_buffer(arrays: dict[str, NDArray[Any]]) -> None:
    rng = np.random.default_rng(0)
    whole = encode(arrays, {"note": [1, 2.0, None, {"a": "b"}]}, compress=True)
    head = 16 + int(whole[12:16].view("<u4")[0])

    for trial in range(1_000):
        mutant = whole.copy()
        where = rng.integers(0, head if trial % 2 else whole.size, rng.integers(1, 4))
        mutant[where] = rng.integers(0, 256, where.size)
        try:
            got, _ = decode(mutant)
        except CodecError:
            continue
        low, high = byte_bounds(mutant)
        views = [byte_bounds(array) for array in got.values() if array.size and np.shares_memory(array, mutant)]
        assert all(low <= first and last <= high for first, last in views)
        assert sum(array.nbytes for array in got.values()) <= 255 * mutant.size
