from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starling.codec import decode, encode
from starling.errors import CodecError
from starling.params import Params
from starling.seal import SEAL, sealed
from starling.types import Columns, SampleReply, SampleRequest, Unroll
from starling.wire import (
    Answers,
    Make,
    decode_packed,
    decode_params,
    decode_reply,
    decode_request,
    decode_unroll,
    decode_whole,
    encode_params,
    encode_reply,
    encode_request,
    encode_unroll,
    encode_whole,
)


def an_unroll(**changes: Any) -> Unroll:
    columns = {
        "obs": np.arange(24, dtype=np.float32).reshape(3, 2, 4),
        "frame": np.arange(300, dtype=np.uint16).reshape(3, 2, 5, 10),
        "action": np.array([[0, 1], [1, 0], [1, 1]]),
        "acted": np.array([[True, True], [True, False], [True, True]]),
        "age": np.array([[0, 4], [1, 5], [2, 0]]),
    }
    columns["obs"][1, 1] = 0.0  # what a row that was no step holds is lost where it is small
    given: dict[str, Any] = {
        "actor": 3,
        "generation": 1,
        "sequence": 9,
        "columns": columns,
        "final_at": np.array([1]),
        "final_obs": np.ones((1, 4), np.float32),
        "episodes": {"return": np.array([21.0]), "length": np.array([21])},
    }
    return Unroll(**given | changes)


def some_params() -> Params:
    rng = np.random.default_rng(0)
    return Params.of({"w": rng.normal(size=(4, 3)).astype("f4"), "b": np.zeros(3, "f4"), "scale": np.ones((), "f4")})


@pytest.mark.parametrize(
    "optional",
    [
        {},
        {"priorities": np.full((3, 2), np.nan, np.float32)},
        {"start_at": np.array([0, 4]), "starts": {"h": np.ones((2, 5), np.float32), "c": np.zeros((2, 5), np.float32)}},
    ],
    ids=lambda optional: " ".join(optional) or "nothing optional",
)
def test_an_unroll_arrives_with_every_field(optional: dict[str, Any]) -> None:
    sent = an_unroll(**optional)

    got = decode_unroll(encode_unroll(sent))

    assert_equal_fields(got, sent)
    assert got.num_steps == sent.num_steps


@pytest.mark.parametrize("starts", [{}, {"policy": np.ones((2, 2, 5), np.float32)}])
def test_what_is_learned_from_whole_arrives_with_all_that_its_rows_held(starts: Columns) -> None:
    columns = an_unroll().columns | {"version": np.full((3, 2), 7)}
    columns["obs"][1, 1] = 5.0  # though that row was no step
    at = np.arange(2) if starts else np.empty(0, np.int64)
    sent = an_unroll(columns=columns, next_obs=np.ones((2, 4), np.float32), start_at=at, starts=starts)

    got = decode_whole(encode_whole(sent))

    assert_equal_fields(got, sent)
    assert got.columns["version"].min() == 7


def test_a_column_may_be_named_like_a_field() -> None:
    sent = an_unroll(
        columns={"acted": np.ones((1, 1), np.bool_), "next_obs": np.zeros((1, 1))},
        final_at=np.empty(0, np.int64),
        final_obs=np.empty((0, 4), np.float32),
    )

    got = decode_unroll(encode_unroll(sent))

    assert got.next_obs is None
    assert list(got.columns) == ["acted", "next_obs"]


def test_parameters_arrive_with_their_layout_and_without_a_copy() -> None:
    sent = some_params()
    buffer = encode_params(sent)

    got = decode_params(buffer)

    assert got.layout == sent.layout
    np.testing.assert_array_equal(got.buffer, sent.buffer)
    assert np.shares_memory(got.buffer, buffer)


@pytest.mark.parametrize(
    "buffer",
    [
        encode({}),
        encode({"params": np.zeros(2, np.float64)}, {"layout": [["w", [2]]]}),
        encode({"params": np.zeros(3, np.float32)}, {"layout": [["w", [2]]]}),
        encode({"params": np.zeros(2, np.float32)}, {"layout": [["w", [-2]]]}),
        encode({"params": np.zeros(2, np.float32)}, {"layout": [[["w"], [2]]]}),
        encode_unroll(an_unroll()),
    ],
)
def test_what_is_no_parameters_is_refused(buffer: Any) -> None:
    with pytest.raises(CodecError):
        decode_params(buffer)


def a_reply(windows: int = 3, value: int = 1, starts: bool = False, **changes: Any) -> SampleReply:
    given: dict[str, Any] = {
        "counts": [windows - 1, 1] if windows else [0, 0],
        "windows": {
            "obs": np.full((2, windows, 2, 84, 84), value, np.uint8),
            "valid": np.ones((3, windows), np.bool_),
        },
        "keys": np.arange(windows) + (1 << 40),
        "probabilities": np.linspace(0.1, 0.2, windows),
        "mass": 7.25,
        "size": 12,
        "inserted": 2**62,
        "origin": 5,
        "starts": {"h": np.full((windows, 4), value, np.float32)} if starts else {},
    }
    return SampleReply(**given | changes)


def a_request(keys: int = 2) -> SampleRequest:
    return SampleRequest(
        counts=[2, 1],
        keys=np.arange(keys) + (1 << 40),
        priorities=np.linspace(0.0, 1.0, keys),
        insert_limit=2**62,
        largest_priority=3.5,
        generation=4,
    )


def gathering(reply: SampleReply, made: list[Columns]) -> Callable[[SampleRequest, Make], SampleReply]:
    """Return what answers any request with this reply, gathered into the arrays that it is handed."""

    def sample(request: SampleRequest, make: Make) -> SampleReply:
        windows = make({name: (array.shape, array.dtype) for name, array in reply.windows.items()})
        for name, array in reply.windows.items():
            windows[name][...] = array
        made.append(windows)
        return replace(reply, windows=windows)

    return sample


def assert_equal_fields(got: Any, expected: Any) -> None:
    for field in fields(expected):
        np.testing.assert_equal(getattr(got, field.name), getattr(expected, field.name))


def test_a_request_arrives_with_every_field() -> None:
    assert_equal_fields(decode_request(encode_request(a_request())), a_request())


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("windows", [0, 3])
def test_a_reply_arrives_with_every_field(windows: int, starts: bool) -> None:
    sent = a_reply(windows, starts=starts)

    assert_equal_fields(decode_reply(encode_reply(sent)), sent)


@pytest.mark.parametrize("starts", [False, True])
def test_an_answer_that_was_gathered_in_place_is_the_reply_encoded(starts: bool) -> None:
    answers, replies = Answers(), [a_reply(windows, windows, starts) for windows in (3, 30, 3, 4)]

    packed = [bytes(answers.pack(gathering(reply, []), encode_request(a_request()))) for reply in replies]

    assert packed == [bytes(encode_reply(reply)) for reply in replies]


def test_windows_are_gathered_where_they_are_sent_from() -> None:
    answers, made = Answers(), list[Columns]()
    answers.pack(gathering(a_reply(100, starts=True), made), encode_request(a_request()))

    packed = answers.pack(gathering(a_reply(99, starts=True), made), encode_request(a_request()))

    assert np.shares_memory(made[1]["obs"], packed)


def test_answers_use_the_same_memory_again() -> None:
    def packed(answers: Answers, windows: int) -> NDArray[np.uint8]:
        return answers.pack(gathering(a_reply(windows), []), encode_request(a_request()))

    answers = Answers()

    assert np.shares_memory(packed(answers, 100), packed(answers, 99))


def test_an_answer_without_windows_needs_no_arrays_made() -> None:
    packed = Answers().pack(lambda request, make: a_reply(0), encode_request(a_request()))

    assert_equal_fields(decode_reply(packed), a_reply(0))


@pytest.mark.parametrize(
    "buffer",
    [
        encode({}),
        encode_unroll(an_unroll())[: -SEAL.size],
        encode(decode(encode_reply(a_reply()))[0] | {"tally": np.zeros(3)}),
        encode(decode(encode_reply(a_reply()))[0] | {"tally": np.arange(2)}),
        encode(decode(encode_reply(a_reply()))[0] | {"mass": np.zeros(2)}),
    ],
)
def test_what_is_no_reply_is_refused(buffer: NDArray[np.uint8]) -> None:
    with pytest.raises(CodecError, match="must hold a sample reply"):
        decode_reply(buffer)


@pytest.mark.parametrize("part", [{"asked": np.arange(1)}, {"asked": np.zeros(3)}, {"largest": np.zeros(2)}])
def test_what_is_no_request_is_refused(part: Columns) -> None:
    with pytest.raises(CodecError, match="must hold a sample request"):
        decode_request(encode(decode(encode_request(a_request()))[0] | part))


def test_what_is_no_unroll_is_refused() -> None:
    arrays, _ = decode(encode_unroll(an_unroll())[: -SEAL.size])
    without = {name: array for name, array in arrays.items() if name != "final_at"}

    for buffer in [encode_params(some_params()), encode(without), encode(arrays | {"unroll": np.arange(2)})]:
        with pytest.raises(CodecError, match="must hold an unroll"):
            decode_unroll(sealed(buffer))


def test_what_is_no_whole_unroll_is_refused() -> None:
    arrays, _ = decode(encode_whole(an_unroll()))
    without = {name: array for name, array in arrays.items() if name != "final_at"}

    for buffer in [encode_params(some_params()), encode(without), encode(arrays | {"unroll": np.arange(2)})]:
        with pytest.raises(CodecError, match="must hold a whole unroll"):
            decode_whole(buffer)


@pytest.mark.parametrize(
    "part",
    [
        {"final_at": np.array(1)},
        {"final_at": np.array([[1]])},
        {"final_at": np.array([1.0])},
        {"final_at": np.arange(7)},
        {"rows": np.zeros((), [("->", "<i4")])},
        {"rows": np.zeros((2, 3), [("->", "<i4")])},
        {"column/acted": np.array(True)},
        {"column/acted": np.ones(6, np.bool_)},
        {"column/acted": np.ones((3, 2), np.int64)},
        {"column/acted": np.ones((0, 2), np.bool_)},
    ],
    ids=lambda part: " ".join(f"{name} {array.dtype} {array.shape}" for name, array in part.items()),
)
@pytest.mark.parametrize("read", [decode_packed, decode_unroll])
def test_parts_that_no_unroll_has_are_refused(part: Columns, read: Callable[[Any], Any]) -> None:
    arrays, _ = decode(encode_unroll(an_unroll())[: -SEAL.size])

    with pytest.raises(CodecError, match="must hold an unroll"):
        read(sealed(encode(arrays | part)))


@pytest.mark.parametrize(
    ("whole", "read"),
    [
        (encode_unroll(an_unroll()), decode_unroll),
        (encode_whole(an_unroll()), decode_whole),
        (encode_params(some_params()), decode_params),
        (encode_request(a_request()), decode_request),
        (encode_reply(a_reply()), decode_reply),
    ],
)
def test_a_mutated_message_is_read_or_refused(whole: NDArray[np.uint8], read: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    head = 16 + int(whole[12:16].view("<u4")[0])

    for _ in range(500):
        mutant = whole.copy()
        mutant[rng.integers(0, head)] = rng.integers(0, 256)
        with suppress(CodecError):
            read(mutant)
