"""`starling replay import` and `starling replay export`: recorded data into a run's replay, and out of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.envs import EnvConfig, Measured, measure
from cluster.commands.options import only, print_help, read, wants_help
from cluster.config import load, with_replay
from cluster.contents import replay_folder
from cluster.inbox import FOLDER, Written, deliver, write_segment
from cluster.npz import write_npz
from cluster.recorded_files import KINDS, NPZ, SEGMENT, check_all, left_out, recorded, stem_of_data, wanted_by
from cluster.replay_view import Layout, alive_steps, shards_in
from cluster.roles import build_algorithm
from cluster.run_folder import Run, find_run
from replay_server.contents import ShardContents
from starling.config import shown
from starling.errors import DataError, check
from starling.recorded import recorded_from
from starling.recordings import write_steps
from starling.spec import Spec
from starling.types import Unroll

FREE = {"env", "max_episode_steps"}
"""Parts of a Spec in which two environments may differ and still make the same data"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Where recorded data comes from, and where it goes."""

    env: str | None = None
    """environment that was recorded; default: the run's"""
    run: str = "latest"
    """run that learns from it, live or stopped"""
    out: str | None = None
    """file (.seg) to write instead, with no run but what --env says"""
    runs: str = "runs"
    """folder of all runs"""

    def __post_init__(self) -> None:
        out = self.out
        check(out is None or out.endswith(SEGMENT), f"out must be a file ending in {SEGMENT}, got {out}")
        check(out is None or self.env is not None, "env must be given with --out, as no run says it, got nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What is written, and where."""

    out: str = "replay.npz"
    """.npz: arrays in the environment's own terms, which must fit in memory; .seg: unrolls as they came"""
    shard: int | None = None
    """number of the shard; default: all"""
    runs: str = "runs"
    """folder of all runs"""

    def __post_init__(self) -> None:
        kinds = f"{NPZ} or {SEGMENT}"
        check(self.out.endswith((NPZ, SEGMENT)), f"out must be a file ending in {kinds}, got {self.out}")


def import_(args: list[str]) -> int:
    """Bring recorded data into a run's replay."""
    if wants_help(args):
        what = (
            f"Bring recorded steps into a run's replay, beside what its actors play. FILES: each {KINDS}. Arrays of an "
            ".npz file hold steps in the order of time: obs, action, reward, terminated; if any, "
            "truncated, episode, and next_obs for each step or final_obs for each end; and what the algorithm stores."
        )
        return print_help(ImportOptions(), "replay import", "FILES", what)
    sources, options = read(args, ImportOptions)
    check(bool(sources), "replay import must be given FILES before its flags, got nothing")
    if options.out is not None:
        env = EnvConfig(id=str(options.env))
        wanted = wanted_by(env, measure(env))
        check_all(sources, wanted)
        unrolls = (unroll for source in sources for unroll in recorded(source, wanted))
        _say("; ".join(sources), write_segment(Path(options.out), unrolls), options.out)
        return 0
    run = find_run(Path(options.runs), options.run)
    config = with_replay(load(str(run.config)), f"run {run.name}")
    measured = measure(config.env)
    if options.env is not None and options.env != config.env.id:
        _refuse_another(run, measured.spec, measure(EnvConfig(id=options.env)).spec)
    wanted = wanted_by(config.env, measured, build_algorithm(config).columns(measured.spec))
    check_all(sources, wanted)
    when = "taken up within a second" if run.is_live() else "taken up when the run goes on"
    for source in sources:
        written = deliver(
            replay_folder(config.replay, run.path) / FOLDER, stem_of_data(source), recorded(source, wanted)
        )
        _say(source, written, f"{run.name}, {when}", left_out(source, wanted))
    return 0


def export(args: list[str]) -> int:
    """Write what a run's replay holds."""
    if wants_help(args):
        what = (
            "Write every step that a run's replay holds, in the order of (actor, copy, time). An .npz file "
            "holds obs, action, reward (divided by env.reward_scale), terminated, truncated, episode, age, final_obs "
            "(one for each step that ended), version, actor, copy, and what the algorithm stores."
        )
        return print_help(ExportOptions(), "replay export", "RUN", what)
    before, options = read(args, ExportOptions)
    run = find_run(Path(options.runs), only(before, "replay export", "RUN"))
    config = with_replay(load(str(run.config)), f"run {run.name}")
    shards = _chosen(shards_in(replay_folder(config.replay, run.path)), run, options.shard)
    measured = measure(config.env)
    capacity = Layout(config, measured.spec).capacity
    unrolls = (unroll for shard in shards for unroll in alive_steps(shard, capacity))
    path = Path(options.out)
    if path.suffix == SEGMENT:
        _say(run.name, write_segment(path, unrolls), options.out)
    else:
        _say(run.name, _write_arrays(path, unrolls, measured, config.env.reward_scale), options.out)
    return 0


def _write_arrays(path: Path, unrolls: Iterator[Unroll], measured: Measured, scale: float) -> Written:
    steps = recorded_from(unrolls)
    write_npz(path, write_steps(steps, measured.spaces, scale))
    return Written(path, len(steps.begins), int(np.count_nonzero(steps.ended)))


def _chosen(found: Mapping[int, ShardContents], run: Run, shard: int | None) -> list[ShardContents]:
    if not found:
        raise DataError(f"run {run.name} has nothing to export: its replay is not on the disk")
    if shard is not None and shard not in found:
        raise DataError(f"shard must be one of {', '.join(map(str, sorted(found)))}, got {shard}")
    return [part for number, part in sorted(found.items()) if shard in (None, number)]


def _refuse_another(run: Run, own: Spec, other: Spec) -> None:
    for name in (field for field in Spec.__dataclass_fields__ if field not in FREE):
        was, now = getattr(own, name), getattr(other, name)
        rule = f"env must be like {own.env}, which {run.name} learns, with {name} {shown(was)}"
        check(was == now, f"{rule}, got {other.env} with {shown(now)}")


def _say(source: str, written: Written, where: str, left: list[str] | None = None) -> None:
    rest = f"; left out: {', '.join(left)}" if left else ""
    print(f"{source}  ->  {where}: {written.steps:,} steps, {written.episodes:,} episodes ended{rest}")
