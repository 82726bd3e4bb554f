"""How a run goes on: which settings may change, where it stands, and what another run can give a new one."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cluster.checkpoints import Checkpoint, load_to_resume
from cluster.config import Config, ReplayRun, algorithm_name
from cluster.contents import MOVED, SHARD, Contents, replay_folder, shard_states
from cluster.course import Past
from cluster.roles import Start, build_algorithm
from cluster.rows import plain
from cluster.run_folder import Run, load_params
from cluster.snapshots import has_snapshots, named_in, require_snapshots
from replay_server.log import has_log
from starling.errors import ConfigError, RunError
from starling.networks.arrays import layout_of
from starling.params import Params
from starling.spec import Spec
from starling.state import State
from starling.types import Columns

KEEPING = ("replay.durability", "replay.fsync_every_s", "replay.folder")
FREE = ("goal.", "evaluator.", "checkpoint.", "replay.samples_per_insert", *KEEPING)
SHARDING = ("replay.shards", "replay.capacity", "replay.capacity_bytes")
FREE_FOR_RAY = (*FREE, "actor.num", *SHARDING)
CONTENTS: dict[tuple[bool, bool], Contents] = {
    (False, True): "exact",
    (False, False): "newest",
    (True, True): "moved_exact",
    (True, False): "moved_newest",
}
"""By whether what the shards held goes to others, and whether what came after the checkpoint is left out"""


class Taken(NamedTuple):
    """What a new run begins with of another's networks."""

    arrays: Columns
    left: list[str]  # arrays of the new run that begin at random


def fixed_settings(config: Config[Any]) -> dict[str, Any]:
    """Return every setting that a checkpoint depends on, by its dotted name."""
    free = FREE_FOR_RAY if config.runtime == "ray" else FREE
    return {key: value for key, value in all_settings(config).items() if not key.startswith(free)}


def all_settings(config: Config[Any]) -> dict[str, Any]:
    """Return every setting by its dotted name, as a checkpoint remembers it."""
    table = {"algorithm.name": algorithm_name(config), **dict(_settings(config))}
    return {key: plain(value) for key, value in table.items()}


def refuse_changes(run: Run, old: Config[Any], new: Config[Any]) -> None:
    """Let a run go on only with the settings that its states fit."""
    for key, was, now in _differences(fixed_settings(old), fixed_settings(new)):
        raise ConfigError(
            f"{key} must stay {was} when {run.name} is resumed, got {now}; {_may_change(new)}, "
            f"and --init-from {run.name} begins a new run with its parameters"
        )


def _may_change(config: Config[Any]) -> str:
    if not isinstance(config, ReplayRun):
        return "only goal.*, evaluator.*, checkpoint.* and, with ray, actor.num may change"
    return (
        f"only goal.*, evaluator.*, checkpoint.*, replay.samples_per_insert, {', '.join(KEEPING)} and, with ray, "
        f"actor.num, {', '.join(SHARDING)} may change"
    )


def resumed(run: Run, config: Config[Any], at: str | None = None) -> tuple[Start, str]:
    """Return where a run goes on, and the name of the checkpoint that says so."""
    if not isinstance(config, ReplayRun):
        checkpoint = load_to_resume(run.path / "checkpoints", at)
        return start_of(checkpoint), _checked(checkpoint, run, config)
    folder = replay_folder(config.replay, run.path)
    checkpoint = load_to_resume(run.path / "checkpoints", at, partial(require_snapshots, folder))
    name = _checked(checkpoint, run, config)
    exactly = at is not None or config.runtime == "local"
    lost = _why_lost(checkpoint, folder, exactly)
    moves = (folder / MOVED).exists() or _other_shards(checkpoint, config)
    contents: Contents = "new" if lost else CONTENTS[moves, exactly]
    start = start_of(replace(checkpoint, states=_with_all_shards(checkpoint, folder)))
    return replace(start, folder=str(folder), contents=contents, lost=lost), name


def _checked(checkpoint: Checkpoint, run: Run, config: Config[Any]) -> str:
    """Return the name of a checkpoint that was made with these settings."""
    name = str(checkpoint.facts["name"])
    for key, was, now in _differences(checkpoint.facts["settings"], fixed_settings(config)):
        raise RunError(f"{run.path / 'checkpoints' / name} was made with {key} = {was}, and config.toml says {now}")
    return name


def _why_lost(checkpoint: Checkpoint, folder: Path, exactly: bool) -> str:
    """Say why what the shards held is not there; empty if it is, or at least the log of one of them."""
    named = any(named_in(checkpoint.states))
    if not named and checkpoint.facts["settings"].get("replay.durability", "none") == "none":
        return f"checkpoint {checkpoint.facts['name']} kept none of it"
    if not folder.exists():
        return f"{folder} is not there"
    if (named and has_snapshots(folder)) or (not exactly and any(map(has_log, folder.glob("shard-*")))):
        return ""
    return f"no snapshot is in {folder}"


def _with_all_shards(checkpoint: Checkpoint, folder: Path) -> dict[str, State]:
    """Return the states with one for each shard; of one without a snapshot, as at a run's end, there is its log."""
    states = dict(checkpoint.states)
    for shard in range(checkpoint.facts["settings"].get("replay.shards", 0)):
        states.setdefault(f"{SHARD}[{shard}]", State(meta={"origin": 0}))
    if not has_snapshots(folder):
        states |= {name: State(meta={"origin": own.meta["origin"]}) for name, own in shard_states(states).items()}
    return states


def _other_shards(checkpoint: Checkpoint, config: ReplayRun[Any]) -> bool:
    was, now = checkpoint.facts["settings"], all_settings(config)
    return any(was.get(key, now[key]) != now[key] for key in SHARDING)


def start_of(checkpoint: Checkpoint) -> Start:
    """Return the start that continues a checkpoint."""
    facts = checkpoint.facts
    past = Past(**{name: facts[name] for name in ("env_steps", "updates", "elapsed_s", "best_mean", "number")})
    return Start(past=past, states=checkpoint.states)


def taken_from(run: Run, config: Config[Any], spec: Spec) -> Taken:
    """Return the arrays of a run's best networks that fit, or its latest ones before there is a best."""
    best = (run.path / "checkpoints" / "BEST").exists()
    given, _ = load_params(run, "best" if best else "latest")
    wanted = dict(layout_of(build_algorithm(config).networks(spec), spec).entries)
    arrays = {name: array for name, array in given.arrays().items() if wanted.get(name) == array.shape}
    if not arrays:
        raise RunError(
            f"run {run.name} has no array that fits: it holds {_listed(given)}, and the new networks are "
            f"{', '.join(f'{name} {shape}' for name, shape in wanted.items())}"
        )
    return Taken(arrays, [name for name in wanted if name not in arrays])


def _listed(params: Params) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in params.layout.entries)


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield what both know and do not agree on; a setting that is younger than a checkpoint was at its default."""
    for key, value in old.items():
        if key in new and new[key] != value:
            yield key, value, new[key]
