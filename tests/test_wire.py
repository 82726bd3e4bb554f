from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starling.codec import decode, encode
from starling.errors import CodecError
from starling.params import Params
from starling.types import Unroll
from starling.wire import decode_params, decode_unroll, encode_params, encode_unroll


def an_unroll(**changes: Any) -> Unroll:
    columns = {
        "obs": np.arange(24, dtype=np.float32).reshape(3, 2, 4),
        "action": np.array([[0, 1], [1, 0], [1, 1]]),
        "acted": np.array([[True, True], [True, False], [True, True]]),
    }
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
    [{}, {"next_obs": np.zeros((2, 4), np.float32)}, {"priorities": np.full((3, 2), np.nan, np.float32)}],
    ids=lambda optional: " ".join(optional) or "neither",
)
def test_an_unroll_arrives_with_every_field(optional: dict[str, Any]) -> None:
    sent = an_unroll(**optional)

    got = decode_unroll(encode_unroll(sent))

    for field in fields(Unroll):
        np.testing.assert_equal(getattr(got, field.name), getattr(sent, field.name))
    assert got.num_steps == sent.num_steps


def test_a_column_may_be_named_like_a_field() -> None:
    sent = an_unroll(columns={"acted": np.ones((1, 1), np.bool_), "next_obs": np.zeros((1, 1))})

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


def test_what_is_no_unroll_is_refused() -> None:
    arrays, meta = decode(encode_unroll(an_unroll()))
    without = {name: array for name, array in arrays.items() if name != "final_at"}

    for buffer in [encode_params(some_params()), encode(without, meta), encode(arrays, {"unroll": [3, 1]})]:
        with pytest.raises(CodecError, match="must hold an unroll"):
            decode_unroll(buffer)


@pytest.mark.parametrize(
    ("whole", "read"), [(encode_unroll(an_unroll()), decode_unroll), (encode_params(some_params()), decode_params)]
)
def test_a_mutated_message_is_read_or_refused(whole: NDArray[np.uint8], read: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    head = 16 + int(whole[12:16].view("<u4")[0])

    for _ in range(500):
        mutant = whole.copy()
        mutant[rng.integers(0, head)] = rng.integers(0, 256)
        with suppress(CodecError):
            read(mutant)
