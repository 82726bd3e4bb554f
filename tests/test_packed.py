"""A packed unroll says the same as the unroll, and its rows are those that a shard keeps."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.packed import DRAWN, NEXT, SMALL, names_in, pack, row_dtype, unpack
from starling.seal import is_whole, seal_of, sealed
from starling.spec import ArraySpec
from starling.types import Unroll
from tests.replay_worlds import CountingWorld

WORLDS: dict[str, Any] = {
    "seed": st.integers(0, 2**32),
    "copies": st.integers(1, 4),
    "length": st.integers(1, 9),
    "end_probability": st.sampled_from([0.0, 0.3, 1.0]),
    "next_step": st.booleans(),
}


def played(seed: int, copies: int, length: int, end_probability: float, next_step: bool) -> Unroll:
    rng = np.random.default_rng(seed)
    world = CountingWorld(rng, copies=copies, end_probability=end_probability, next_step=next_step, period=2)
    world.unroll(3)  # so that the next one begins anywhere in its episodes
    return world.unroll(length)


@given(**WORLDS)
def test_what_was_packed_says_the_same_of_every_step(**world: Any) -> None:
    unroll = played(**world)
    acted = unroll.columns["acted"]

    got = unpack(pack(unroll))

    assert got.columns.keys() == unroll.columns.keys()
    for name, column in unroll.columns.items():
        assert got.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(got.columns[name][acted], column[acted])
    np.testing.assert_array_equal(got.columns["acted"], acted)
    for field in fields(unroll):
        if field.name != "columns":
            np.testing.assert_equal(getattr(got, field.name), getattr(unroll, field.name))


@given(**WORLDS)
def test_each_row_leads_to_the_next_observation_of_its_copy(**world: Any) -> None:
    unroll = played(**world)
    acted = unroll.columns["acted"]
    steps = [(t, e) for t in range(len(acted)) for e in range(acted.shape[1]) if acted[t, e]]
    ends = [tuple(divmod(at, acted.shape[1])) for at in unroll.final_at.tolist()]

    packed = pack(unroll)

    assert packed.num_steps == len(steps)
    for number, (t, e) in enumerate(steps):
        after = len(steps) + ends.index((t, e)) if (t, e) in ends else None
        if after is None:
            after = steps.index((t + 1, e)) if (t + 1, e) in steps else number
        assert packed.rows[NEXT][number] == after
        np.testing.assert_array_equal(packed.rows["obs"][number], unroll.columns["obs"][t, e])
    for number, final_obs in enumerate(unroll.final_obs, len(steps)):
        assert packed.rows[NEXT][number] == number
        np.testing.assert_array_equal(packed.rows["obs"][number], final_obs)
    assert not packed.rows[DRAWN].any()


def test_only_small_columns_lie_in_a_row() -> None:
    columns = {"obs": ArraySpec((SMALL + 1,), "uint8"), "action": ArraySpec((), "int64"), "age": ArraySpec((), "int32")}

    assert names_in(row_dtype(columns)) == ["action"]
    assert names_in(row_dtype(columns | {"obs": ArraySpec((SMALL,), "uint8")})) == ["obs", "action"]


@pytest.mark.parametrize("octets", [b"", b"x", b"an unroll"])
def test_a_seal_breaks_wherever_a_bit_is_flipped(octets: bytes) -> None:
    whole = sealed(np.frombuffer(octets, np.uint8)).tobytes()
    assert is_whole(memoryview(whole))

    for at in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        assert not is_whole(memoryview(flipped))
    for cut in range(len(whole)):
        assert not is_whole(memoryview(whole[:cut]))
    assert seal_of(memoryview(b"ab")) == 0
