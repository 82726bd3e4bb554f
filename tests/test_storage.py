from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from replay_server.config import ReplayConfig
from replay_server.storage import Storage, columns_of, row_bytes
from starling.errors import ConfigError
from starling.packed import pack
from starling.spec import ArraySpec, Spec
from starling.types import STEPS, Columns, spread
from starling.windows import Window
from tests.replay_worlds import EXTRA, SPEC, CountingWorld, bandit_unroll

CARTPOLE = Spec(env="CartPole-v1", obs=ArraySpec((4,), "float32"), action=ArraySpec((), "int64"), num_actions=2)
PONG = Spec(env="ALE/Pong-v5", obs=ArraySpec((84, 84), "uint8"), action=ArraySpec((), "int64"), num_actions=6)


def storage_of(capacity: int, **window: Any) -> Storage:
    return Storage(capacity, columns_of(SPEC, EXTRA), Window(**window))


def test_a_small_step_costs_at_most_100_bytes_with_its_share_of_the_tree() -> None:
    assert row_bytes(columns_of(CARTPOLE, EXTRA)) <= 100


def test_a_frame_is_stored_once() -> None:
    assert row_bytes(columns_of(PONG, EXTRA)) <= 1.1 * 84 * 84


def test_the_smaller_of_both_capacities_counts() -> None:
    in_steps = ReplayConfig(capacity=1000, shards=3)
    in_bytes = ReplayConfig(capacity=1000, capacity_bytes=60_000, shards=3)

    assert in_steps.shard_rows(100) == 334
    assert in_bytes.shard_rows(100) == 200
    assert in_bytes.shard_rows(10) == 334


def test_a_capacity_in_bytes_too_small_for_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"replay.capacity_bytes must be >= 7100 \(a row in each shard\), got 100"):
        ReplayConfig(capacity_bytes=100).shard_rows(7100)


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [("alpha", 1.5, r"in \[0, 1\]"), ("eps", 0.0, "> 0"), ("shards", 0, "between"), ("min_windows", 0, ">= 1")],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"replay.{setting} must be {rule}.*, got {value}"):
        ReplayConfig(**{setting: value})


def test_an_unroll_that_would_overwrite_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"replay.capacity must be >= 20 steps in each shard .* got 19"):
        storage_of(19).append(pack(bandit_unroll(None, count=10)))


def test_keys_count_rows_and_lead_back_from_their_slots() -> None:
    storage = storage_of(7)
    world = CountingWorld(np.random.default_rng(0), copies=1, end_probability=0.0)

    keys = np.concatenate([storage.append(pack(world.unroll(5))) for _ in range(4)]).ravel()

    assert keys.tolist() == list(range(20))
    assert storage.oldest == 13
    assert sorted(storage.rows_in(np.arange(7)).tolist()) == list(range(13, 20))
    np.testing.assert_array_equal(storage.rows_in(storage.slots(keys[-7:])), keys[-7:])


def test_a_link_to_a_row_that_was_overwritten_is_dropped() -> None:
    storage = storage_of(6, every_obs=True)
    world = CountingWorld(np.random.default_rng(0), copies=1, end_probability=0.0)
    early = storage.append(pack(world.unroll(4)))
    late = storage.append(pack(world.unroll(4)))

    storage.link(early[-1], late[0])
    storage.link(early[0], late[2])  # row 0 is gone; row 6 has its slot and leads to row 7

    chain = spread(storage.gather(storage.slots(late[2])))
    assert chain["obs"][:, 0, 1].tolist() == [7, 8]


def test_behind_its_end_a_window_is_zeros_and_its_last_observation() -> None:
    storage = storage_of(50, length=3, every_obs=True)
    storage.append(pack(bandit_unroll(None, count=20)))  # so that the slots are not fresh
    keys = storage.append(pack(bandit_unroll(None, count=20)))

    window = spread(storage.gather(storage.slots(keys[4])))

    assert window["valid"][:, 0].tolist() == [True, False, False]
    assert window["reward"][:, 0].tolist() == [4.0, 0.0, 0.0]
    assert window["terminated"][:, 0].tolist() == [True, False, False]
    assert window["obs"][:, 0].tolist() == [[0, 5], [0, 0], [0, 0], [0, 0]]


def test_steps_in_other_types_are_stored_in_the_shards_own() -> None:
    storage = storage_of(50)
    unroll = bandit_unroll(None, count=5)
    other = {
        name: column.astype("f8") for name, column in unroll.columns.items() if name not in ("acted", "terminated")
    }

    rows = storage.append(pack(replace(unroll, columns={**unroll.columns, **other, "nobody's": unroll.columns["obs"]})))

    kept = spread(storage.gather(storage.slots(rows[:, 0])))
    assert kept["reward"].dtype == np.float32
    np.testing.assert_array_equal(kept["reward"], [np.arange(5.0)])
    np.testing.assert_array_equal(kept["obs"][0], unroll.columns["obs"][:, 0])


def test_rows_whose_columns_lie_in_another_order_are_stored_the_same() -> None:
    same, other = storage_of(50), storage_of(50)
    packed = pack(bandit_unroll(None, count=5))
    names = sorted(packed.rows.dtype.names or ())
    fields = [(name, packed.rows.dtype[name].base, packed.rows.dtype[name].shape) for name in names]
    shuffled = np.zeros(len(packed.rows), np.dtype(fields, align=True))
    for name in names:
        shuffled[name] = packed.rows[name]

    rows = same.append(packed)
    other.append(packed._replace(arrays={**packed.arrays, "rows": shuffled}))

    slots = same.slots(rows[:, 0])
    np.testing.assert_equal(other.gather(slots), same.gather(slots))


def test_what_lies_between_the_columns_of_a_step_is_zero() -> None:
    storage = storage_of(50)
    rows = storage.append(pack(bandit_unroll(None, count=5)))

    def made(entries: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> Columns:
        octets = {name: np.full((*shape, dtype.itemsize), 255, np.uint8) for name, (shape, dtype) in entries.items()}
        return {name: octets[name].view(dtype)[..., 0] for name, (_, dtype) in entries.items()}

    steps = storage.gather(storage.slots(rows[:, 0]), made)[STEPS]

    fields = sum(steps.dtype[name].itemsize for name in steps.dtype.names or ())
    assert fields < steps.dtype.itemsize
    for name in steps.dtype.names or ():
        steps[name] = 0
    assert not steps.view(np.uint8).any()


@pytest.mark.parametrize(("kept", "sent"), [("f4", "f8"), ("f8", "f4")])
def test_steps_whose_own_type_makes_them_too_large_for_a_row_or_small_enough_are_stored_too(
    kept: str, sent: str
) -> None:
    spec = replace(SPEC, obs=ArraySpec((10,), kept))  # 40 or 80 bytes
    storage = Storage(20, columns_of(spec, EXTRA), Window())
    unroll = bandit_unroll(None, count=8)
    obs = np.arange(80).reshape(8, 1, 10).astype(sent)
    wide = replace(unroll, columns={**unroll.columns, "obs": obs}, final_obs=-obs[:, 0])

    for _ in range(2):  # also across the seam
        rows = storage.append(pack(wide))

    window = spread(storage.gather(storage.slots(rows[:, 0])))
    assert window["obs"].dtype == kept
    np.testing.assert_array_equal(window["obs"], [obs[:, 0], -obs[:, 0]])
