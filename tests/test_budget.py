"""What a run would hold in memory is said, and refused where it does not fit, before anything is started."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.budget import (
    ROLE_BYTES,
    TORCH_BYTES,
    Plan,
    available_bytes,
    free_shm,
    plan_memory,
    refuse_what_does_not_fit,
    window_bytes,
)
from cluster.config import Config, load
from cluster.ray_node import OBJECT_STORE_BYTES
from replay_server.storage import columns_of, row_bytes
from starling.config import Layer
from starling.errors import ConfigError
from starling.spec import ArraySpec, Spec
from starling.windows import Window

CARTPOLE = Spec(env="CartPole-v1", obs=ArraySpec((4,), "float32"), action=ArraySpec((), "int64"), num_actions=2)
PONG = Spec(env="Pong", obs=ArraySpec((84, 84), "uint8"), action=ArraySpec((), "int64"), num_actions=6)
GB = 10**9
A_PLAN = Plan(
    shards=2,
    rows=500_000,
    row_bytes=7_101,
    keeping_bytes=0,
    processes=6,
    process_bytes=900_000_000,
    unroll_bytes=100_000_000,
    sample_bytes=150_000_000,
    param_bytes=50_000_000,
    uses_ray=True,
)


def settings(**sections: dict[str, Any]) -> Config[Any]:
    return load("cartpole", (), Layer("test", sections))


def test_a_plan_that_does_not_fit_is_refused_with_its_arithmetic() -> None:
    with pytest.raises(ConfigError) as refusal:
        refuse_what_does_not_fit(A_PLAN, available=5 * GB, shm_free=None)

    assert str(refusal.value) == (
        "replay.capacity must fit the memory: 2 shards x 500,000 steps x 7,101 bytes = 7.1 GB and 1.2 GB for "
        "6 processes and what is under way make 8.3 GB, but 5.0 GB is available; "
        "lower replay.capacity to at most 530,000 or set replay.capacity_bytes"
    )


def test_a_plan_reads_as_its_arithmetic() -> None:
    assert str(A_PLAN) == (
        "8.3 GB: 2 shards x 500,000 steps x 7,101 bytes = 7.1 GB, 1.2 GB for 6 processes and what is under way"
    )


def test_more_rows_than_a_shard_can_number_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be <= 1073741824 steps in each shard, got 1073741825"):
        refuse_what_does_not_fit(replace(A_PLAN, rows=2**30 + 1), available=10**15, shm_free=None)


def test_the_advice_fits() -> None:
    refuse_what_does_not_fit(replace(A_PLAN, rows=530_000 // 2), available=5 * GB, shm_free=None)


def test_where_not_even_the_processes_fit_a_smaller_replay_is_no_advice() -> None:
    with pytest.raises(ConfigError, match="end other programs, or have fewer actors"):
        refuse_what_does_not_fit(A_PLAN, available=GB, shm_free=None)


def test_a_plan_that_fits_exactly_is_accepted() -> None:
    refuse_what_does_not_fit(A_PLAN, available=A_PLAN.total_bytes, shm_free=A_PLAN.store_bytes)


def test_the_replay_is_planned_as_its_shards_keep_it() -> None:
    config = settings(replay={"shards": 2, "capacity": 30_001})

    plan = plan_memory(config, CARTPOLE)

    assert (plan.shards, plan.rows) == (2, 15_001)
    assert plan.row_bytes == row_bytes(columns_of(CARTPOLE, {}), Window())
    assert plan.replay_bytes == 2 * 15_001 * plan.row_bytes
    assert plan.processes == 2 + 2 + 3  # shards, actors; learner, parameter server, evaluator


def test_a_capacity_in_bytes_bounds_the_plan() -> None:
    plan = plan_memory(settings(replay={"capacity_bytes": 500_000}), CARTPOLE)

    assert 490_000 < plan.replay_bytes <= 500_000


@pytest.mark.parametrize(
    ("part", "sections"),
    [
        ("unroll_bytes", {"actor": {"unroll_length": 64}}),
        ("unroll_bytes", {"env": {"copies": 32}}),
        ("sample_bytes", {"learner": {"batch_size": 128}}),
        ("sample_bytes", {"learner": {"batches_per_request": 16}}),
        ("param_bytes", {"algorithm": {"hidden": [256, 256]}}),
        ("process_bytes", {"actor": {"num": 3}}),
        ("keeping_bytes", {"replay": {"capacity": 40_000}}),
    ],
)
def test_each_setting_that_takes_memory_is_in_the_plan(part: str, sections: dict[str, Any]) -> None:
    assert getattr(plan_memory(settings(**sections), CARTPOLE), part) > getattr(plan_memory(settings(), CARTPOLE), part)


def test_a_local_run_is_one_process() -> None:
    local, ray = (plan_memory(settings(runtime=runtime), CARTPOLE) for runtime in ("local", "ray"))

    assert local.processes == 1
    assert local.total_bytes < ray.total_bytes / 2


@pytest.mark.parametrize(("device", "torch"), [("auto", 0), ("cuda", 2)])
def test_those_who_act_for_actors_are_in_the_plan(device: str, torch: int) -> None:
    acting = {"placement": "central", "num": 2, "device": device}
    own, others = settings(actor={"num": 4}), settings(actor={"num": 4}, inference=acting)
    local, central = plan_memory(own, CARTPOLE), plan_memory(others, CARTPOLE)

    assert central.processes == local.processes + 2
    assert central.process_bytes - local.process_bytes == 2 * ROLE_BYTES + torch * TORCH_BYTES


def test_a_local_run_needs_no_object_store() -> None:
    refuse_what_does_not_fit(replace(A_PLAN, sample_bytes=4 * GB, uses_ray=False), available=99 * GB, shm_free=0)


def test_a_presets_object_store_is_the_smallest() -> None:
    assert plan_memory(settings(), CARTPOLE).store_bytes == OBJECT_STORE_BYTES


def test_what_is_under_way_must_fit_shared_memory() -> None:
    plan = replace(A_PLAN, sample_bytes=4 * GB)

    with pytest.raises(ConfigError, match=r"unrolls, batches and parameters under way need 2\.6 GB there, but 1\.0 GB"):
        refuse_what_does_not_fit(plan, available=99 * GB, shm_free=GB)
    refuse_what_does_not_fit(plan, available=99 * GB, shm_free=plan.store_bytes)


def test_a_machine_whose_shared_memory_is_small_may_still_do_small_things() -> None:
    refuse_what_does_not_fit(A_PLAN, available=99 * GB, shm_free=64 << 20)  # Ray uses a file; doctor says so


@pytest.mark.parametrize(
    ("window", "frames"),
    [
        (Window(length=1), 2),
        (Window(length=3), 2),
        (Window(length=1, stack=4), 5),
        (Window(length=3, stack=4), 8),
        (Window(length=3, stack=4, every_obs=True), 7),
        (Window(length=80, burn_in=40, every_obs=True), 81),
    ],
)
def test_a_window_takes_its_frames_and_a_little_more(window: Window, frames: int) -> None:
    size = window_bytes(window, columns_of(PONG, {}), {"h": ArraySpec((256,), "float32")})

    rest = size - frames * 84 * 84 - 1024
    assert 0 < rest <= 40 * window.length


def test_available_is_what_the_container_still_has(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")

    assert available_bytes(free=10 * GB, cgroup=tmp_path) == 2_200_000
    assert available_bytes(free=1_000, cgroup=tmp_path) == 1_000


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("3000000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1000000\n")
    (tmp_path / "memory" / "memory.stat").write_text("total_inactive_file 5\n")

    assert available_bytes(free=10 * GB, cgroup=tmp_path) == 2_000_005


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    for name, text in (("memory.max", "max\n"), ("memory.current", "7\n"), ("memory.stat", "")):
        (tmp_path / name).write_text(text)

    assert available_bytes(free=10 * GB, cgroup=tmp_path) == 10 * GB
    assert available_bytes(free=10 * GB, cgroup=tmp_path / "nothing") == 10 * GB


def test_this_machine_can_be_asked() -> None:
    assert available_bytes() > 0
    free = free_shm()
    assert free is None or free > 0
    assert (free is None) == (not Path("/dev/shm").is_dir())


def test_a_run_without_a_replay_is_planned_by_its_workers() -> None:
    config = load("cartpole-a3c")

    plan = plan_memory(config, CARTPOLE)
    more = plan_memory(replace(config, actor=replace(config.actor, num=12)), CARTPOLE)

    assert (plan.replay_bytes, plan.processes, more.processes) == (0, 4, 14)
    assert more.process_bytes - plan.process_bytes == 10 * (75_000_000 + 260_000_000)  # each has torch
    assert str(plan) == "1.3 GB for 4 processes and what is under way"
    with pytest.raises(ConfigError) as refusal:
        refuse_what_does_not_fit(more, available=2 * GB, shm_free=None)
    assert str(refusal.value) == (
        "actor.num and params.slices must fit the memory: 4.6 GB for 14 processes and what is under way are needed, "
        "but 2.0 GB is available; lower either"
    )


def test_more_slices_than_parameters_are_refused_before_anything_is_started() -> None:
    config = load("cartpole-a3c", (), Layer("test", {"params": {"slices": 10_000}}))

    with pytest.raises(ConfigError, match=r"params.slices must be between 1 and 9155 \(parameters\), got 10000"):
        plan_memory(config, CARTPOLE)


def test_gradients_that_do_not_fit_the_store_are_refused() -> None:
    config = load("cartpole-a3c", (), Layer("test", {"algorithm": {"hidden": [4096, 4096]}, "actor": {"num": 64}}))
    plan = plan_memory(config, CARTPOLE)

    with pytest.raises(ConfigError, match=r"actor.num must be small enough for /dev/shm: what is under way"):
        refuse_what_does_not_fit(plan, available=10**13, shm_free=GB)
    refuse_what_does_not_fit(replace(plan, uses_ray=False), available=10**13, shm_free=GB)
