"""What a run will hold in memory, said before it is started: the replay, what is under way, and its processes."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from cluster.config import Config, GradientsRun, LockstepRun, QueueRun, ReplayRun
from cluster.ray_node import OBJECT_STORE_BYTES
from cluster.roles import build_algorithm, steps_per_update
from param_server.slices import cut
from replay_server.journal import BACKLOG_BYTES
from replay_server.storage import MAX_ROWS, columns_of, row_bytes
from starling.errors import check
from starling.networks.arrays import num_params
from starling.networks.description import Mlp
from starling.spec import ArraySpec, Spec
from starling.windows import Window

MB = 1_000_000
PARAM_BYTES = 4  # float32
ROLE_BYTES = 75 * MB  # of a role's process, before it does anything; what it shares with others left out
TORCH_BYTES = 260 * MB  # more, in a process that needs torch
RAY_BYTES = 450 * MB  # launcher, supervisor, and Ray's own five processes
LOCAL_BYTES = 150 * MB  # a run's only process, torch and replay left out
UNROLLS_PER_ACTOR = 3  # one that is played, and two that are not acknowledged yet
COPIES_IN_LEARNER = 8  # of the parameters: networks, targets, gradients, the optimizer's, versions and checkpoints
COPIES_ELSEWHERE = 2
COPIES_IN_SLICES = 16  # values, moments and what is in between; the supervisor's copy of each, and a checkpoint's
INDEX_BYTES = 2 * 12  # of a row in a snapshot's index: its mass and its draws, once as they are and once packed
STORE_MARGIN = 1.25  # Ray's store fragments, and spills to the disk before it is full
SHM = Path("/dev/shm")
CGROUPS = (  # limit, usage, and the field of memory.stat that can be had back
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run's memory by its parts, in bytes, when everything that is bounded is full."""

    shards: int
    rows: int  # of a shard
    row_bytes: int
    keeping_bytes: int  # what waits for the disk, and the index of a snapshot, of all shards
    processes: int
    process_bytes: int  # of all of them
    unroll_bytes: int  # not acknowledged, over all actors
    sample_bytes: int  # batches asked for and not learned from
    param_bytes: int  # versions, over all roles
    uses_ray: bool
    lower: str = "replay.capacity"  # the settings that make it smaller

    @property
    def replay_bytes(self) -> int:
        """What the shards keep."""
        return self.shards * self.rows * self.row_bytes

    @property
    def other_bytes(self) -> int:
        """All but the replay."""
        under_way = self.unroll_bytes + self.sample_bytes + self.param_bytes
        return self.process_bytes + self.keeping_bytes + under_way

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.replay_bytes + self.other_bytes

    @property
    def in_store_bytes(self) -> int:
        """What can be in Ray's object store at one time; the roles' own copies are counted beside it."""
        return (self.unroll_bytes + self.sample_bytes + self.param_bytes) // 2

    @property
    def store_bytes(self) -> int:
        """How large Ray's object store shall be."""
        return max(OBJECT_STORE_BYTES, int(STORE_MARGIN * self.in_store_bytes))

    def __str__(self) -> str:
        """Return the arithmetic as people read it."""
        others = f"{_size(self.other_bytes)} for {_count(self.processes, 'process')} and what is under way"
        return f"{_size(self.total_bytes)}: {_replay(self)}, {others}" if self.shards else others


def plan_memory(config: Config[Any], spec: Spec) -> Plan:
    """Return what a run of these settings will hold."""
    algorithm = build_algorithm(config)
    needs = Needs(
        row_bytes=row_bytes(columns_of(spec, algorithm.columns(spec)), algorithm.window),
        param_bytes=PARAM_BYTES * sum(num_params(network, spec) for network in algorithm.networks(spec).values()),
        acts_by_torch=not all(isinstance(network.torso, Mlp) for network in algorithm.acting(spec).values()),
    )
    if isinstance(config, ReplayRun):
        return _plan_replay(config, spec, needs)
    if isinstance(config, GradientsRun):
        return _plan_gradients(config, needs)
    assert isinstance(config, QueueRun | LockstepRun)
    return _plan_unrolls(config, needs)


class Needs(NamedTuple):
    """What an algorithm needs in an environment, in every topology."""

    row_bytes: int
    param_bytes: int  # of all networks, once
    acts_by_torch: bool


def _plan_replay(config: ReplayRun[Any], spec: Spec, needs: Needs) -> Plan:
    algorithm, replay, learner = build_algorithm(config), config.replay, config.learner
    assert algorithm.window is not None, "only windows are replayed"
    rows = replay.shard_rows(needs.row_bytes)
    windows = learner.batch_size * learner.batches_per_request * (learner.requests_ahead + 1)
    processes = replay.shards + _playing(config) + 3 if config.runtime == "ray" else 1
    torch = _acting_by_torch(config, needs) + 1
    return Plan(
        shards=replay.shards,
        rows=rows,
        row_bytes=needs.row_bytes,
        keeping_bytes=replay.shards * (BACKLOG_BYTES + rows * INDEX_BYTES) if replay.durability != "none" else 0,
        processes=processes,
        process_bytes=_process_bytes(config, processes, torch),
        unroll_bytes=2 * UNROLLS_PER_ACTOR * _unrolls_bytes(config, needs),
        sample_bytes=2 * windows * window_bytes(algorithm.window, columns_of(spec, algorithm.columns(spec)), {}),
        param_bytes=needs.param_bytes * (COPIES_IN_LEARNER + COPIES_ELSEWHERE * processes),
        uses_ray=config.runtime == "ray",
    )


def _plan_unrolls(config: QueueRun[Any] | LockstepRun[Any], needs: Needs) -> Plan:
    update = steps_per_update(config) * needs.row_bytes
    queued = update
    if isinstance(config, QueueRun):
        queued = config.queue.capacity * _unrolls_bytes(config, needs) // config.actor.num
    processes = _playing(config) + 3 if config.runtime == "ray" else 1
    return Plan(
        shards=0,
        rows=0,
        row_bytes=needs.row_bytes,
        keeping_bytes=0,
        processes=processes,
        process_bytes=_process_bytes(config, processes, _acting_by_torch(config, needs) + 1),
        unroll_bytes=2 * (UNROLLS_PER_ACTOR * _unrolls_bytes(config, needs) + queued),
        sample_bytes=2 * update,  # as a batch, and on its way to one
        param_bytes=needs.param_bytes * (COPIES_IN_LEARNER + COPIES_ELSEWHERE * processes),
        uses_ray=config.runtime == "ray",
        lower="queue.capacity" if isinstance(config, QueueRun) else "actor.unroll_length",
    )


def _plan_gradients(config: GradientsRun[Any], needs: Needs) -> Plan:
    cut(needs.param_bytes // PARAM_BYTES, config.params.slices)  # refuses empty slices
    processes = config.params.slices + config.actor.num + 1 if config.runtime == "ray" else 1
    return Plan(
        shards=0,
        rows=0,
        row_bytes=needs.row_bytes,
        keeping_bytes=0,
        processes=processes,
        process_bytes=_process_bytes(config, processes, config.actor.num + needs.acts_by_torch),
        unroll_bytes=2 * _unrolls_bytes(config, needs),  # as it was played, and as a batch
        sample_bytes=0,
        param_bytes=needs.param_bytes * (COPIES_IN_LEARNER * config.actor.num + COPIES_IN_SLICES),
        uses_ray=config.runtime == "ray",
        lower="params.slices",
    )


WithLearner = ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any]


def _playing(config: WithLearner) -> int:
    """Return how many processes act or step."""
    return config.actor.num + (config.inference.num if config.inference.placement == "central" else 0)


def _acting_by_torch(config: WithLearner, needs: Needs) -> int:
    """Return how many processes act by torch, the evaluator's included."""
    inference = config.inference
    if inference.placement == "local":
        return config.actor.num + 1 if needs.acts_by_torch else 0
    by_torch = needs.acts_by_torch or inference.device == "cuda" or inference.threads > 1
    return inference.num * by_torch + needs.acts_by_torch


def _process_bytes(config: Config[Any], processes: int, with_torch: int) -> int:
    if config.runtime == "local":
        return LOCAL_BYTES + TORCH_BYTES
    return RAY_BYTES + processes * ROLE_BYTES + with_torch * TORCH_BYTES


def _unrolls_bytes(config: Config[Any], needs: Needs) -> int:
    return config.actor.num * config.actor.unroll_length * config.env.copies * needs.row_bytes


def window_bytes(window: Window, columns: Mapping[str, ArraySpec], starts: Mapping[str, ArraySpec]) -> int:
    """Return what a sampled window takes, with its key, its probability and the recurrent state at its start."""
    steps = sum(column.nbytes for name, column in columns.items() if name != "obs") + 1 + (window.burn_in > 0)
    frames = window.stack + window.length if window.every_obs or window.length == 1 else 2 * window.stack
    return window.length * steps + frames * columns["obs"].nbytes + 16 + sum(start.nbytes for start in starts.values())


def refuse_what_does_not_fit(plan: Plan, available: int, shm_free: int | None) -> None:
    """Say in one sentence, with the arithmetic, what would not fit this machine."""
    check(
        plan.rows <= MAX_ROWS,
        f"replay.capacity must be <= {MAX_ROWS} steps in each shard, got {plan.rows}",
    )
    if not plan.shards:
        _refuse_too_many_processes(plan, available, shm_free)
        return
    check(
        plan.total_bytes <= available,
        f"replay.capacity must fit the memory: {_replay(plan)} and {_size(plan.other_bytes)} for "
        f"{_count(plan.processes, 'process')} and what is under way make {_size(plan.total_bytes)}, "
        f"but {_size(available)} is available; {_advice(plan, available)}",
    )
    if not plan.uses_ray or shm_free is None or plan.store_bytes == OBJECT_STORE_BYTES:
        return
    check(
        plan.store_bytes <= shm_free,
        f"learner.requests_ahead must be small enough for {SHM}: unrolls, batches and parameters under way need "
        f"{_size(plan.store_bytes)} there, but {_size(shm_free)} is free; lower learner.batches_per_request, or give "
        f"a container more by --shm-size",
    )


def _refuse_too_many_processes(plan: Plan, available: int, shm_free: int | None) -> None:
    check(
        plan.total_bytes <= available,
        f"actor.num and {plan.lower} must fit the memory: {plan} are needed, but {_size(available)} is available; "
        "lower either",
    )
    fits = not plan.uses_ray or shm_free is None or plan.store_bytes <= max(shm_free, OBJECT_STORE_BYTES)
    check(
        fits,
        f"actor.num must be small enough for {SHM}: what is under way between processes needs "
        f"{_size(plan.store_bytes)} there, but {_size(shm_free or 0)} is free; have fewer actors, or shorter unrolls",
    )


def available_bytes(free: int | None = None, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how much memory this machine, or the container that this process is in, still has."""
    found = [psutil.virtual_memory().available if free is None else free]
    for limit, usage, cached in CGROUPS:
        try:
            most, used = (cgroup / limit).read_text().strip(), int((cgroup / usage).read_text())
            stat = dict(line.split() for line in (cgroup / usage).with_name("memory.stat").read_text().splitlines())
        except OSError:
            continue  # the other version of control groups, or none
        if most != "max":
            found.append(int(most) - used + int(stat.get(cached, 0)))
    return max(0, min(found))


def free_shm() -> int | None:
    """Return what is free where Ray keeps its objects, or None where there is no such place."""
    return shutil.disk_usage(SHM).free if SHM.is_dir() else None


def _advice(plan: Plan, available: int) -> str:
    rows = (available - plan.other_bytes) // plan.row_bytes // plan.shards
    if rows < 1:
        return "end other programs, or have fewer actors"
    steps = plan.shards * rows
    digits = 10 ** max(0, len(str(steps)) - 2)
    return f"lower replay.capacity to at most {steps // digits * digits:,} or set replay.capacity_bytes"


def _replay(plan: Plan) -> str:
    product = f"{_count(plan.shards, 'shard')} x {plan.rows:,} steps x {plan.row_bytes:,} bytes"
    return f"{product} = {_size(plan.replay_bytes)}"


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 100 * MB else f"{size / MB:.0f} MB"
