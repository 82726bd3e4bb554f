"""The whole of a run's settings: every role's section in one tree, filled from presets, files and flags."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_origin

from actors.config import PlayConfig
from actors.envs import EnvConfig
from actors.evaluator import EvaluatorConfig
from actors.inference_config import InferenceConfig
from actors.worker import ActorConfig
from learner.config import LearnerConfig, QueueConfig, QueueLearnerConfig, UnrollLearnerConfig
from param_server.config import SliceConfig
from replay_server.config import ReplayConfig
from starling.algorithms import ALGORITHMS, Topology
from starling.config import Layer, build, did_you_mean, parse_toml, read_toml, shown
from starling.errors import ConfigError, UsageError, check
from starling.flags import Flag, layers
from starling.toml import as_table, to_toml

A = TypeVar("A")
DEFAULT_ALGORITHM = "dqn"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalConfig:
    """When a run ends: at the first of these."""

    return_mean: float | None = None
    """greedy evaluations' mean return at which the task counts as solved"""
    total_steps: int = 1_000_000
    """budget of environment steps, over all actors"""
    max_minutes: float | None = None
    """budget of wall-clock time"""

    def __post_init__(self) -> None:
        check(self.total_steps >= 1, f"total_steps must be >= 1, got {self.total_steps}")
        minutes = self.max_minutes
        check(minutes is None or minutes > 0.0, f"max_minutes must be > 0, got {minutes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When a run is written down so that it can go on, and how much of that is kept."""

    every: int = 5_000
    """updates from one checkpoint to the next; 0: only when the run ends"""
    keep: int = 3
    """newest checkpoints that stay, beside the best"""

    def __post_init__(self) -> None:
        check(self.every >= 0, f"checkpoint.every must be >= 0, got {self.every}")
        check(self.keep >= 1, f"checkpoint.keep must be >= 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True)
class Config(Generic[A]):
    """One run: what is learned, by whom, and until when. What runs of every topology have."""

    seed: int = 0
    """all randomness of the run follows from it"""
    runtime: Literal["ray", "local"] = "ray"
    """ray: each role a process; local: every role in this one, scheduled by counts, repeatable"""
    env: EnvConfig
    algorithm: A
    actor: PlayConfig = field(default_factory=PlayConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    goal: GoalConfig = field(default_factory=GoalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check(self.seed >= 0, f"seed must be >= 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ReplayRun(Config[A]):
    """A run whose learner samples what actors insert into a replay. Checks between its sections stand here."""

    actor: ActorConfig = field(default_factory=ActorConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        _acted_for(self)
        capacity, shards, batch = self.replay.capacity, self.replay.shards, self.learner.batch_size
        _at_most("learner.batch_size", batch, "replay.capacity", capacity)
        _at_most("replay.min_windows", self.replay.min_windows, "replay.capacity", capacity)
        _at_most("replay.shards", shards, "actor.num", self.actor.num)  # an actor's streams stay on one shard
        unrolls = 2 * shards * self.actor.unroll_length * self.env.copies  # twice: each step may end an episode
        check(
            capacity >= unrolls,
            f"replay.capacity must be >= 2 * replay.shards * actor.unroll_length * env.copies = {unrolls}, "
            f"got {capacity}",
        )


@dataclass(frozen=True, kw_only=True)
class GradientsRun(Config[A]):
    """A run whose actors push gradients to slices of the parameters: it has neither replay nor learner."""

    params: SliceConfig = field(default_factory=SliceConfig)


@dataclass(frozen=True, kw_only=True)
class QueueRun(Config[A]):
    """A run whose learner takes whole unrolls from a bounded queue, as they come."""

    actor: ActorConfig = field(default_factory=ActorConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    learner: QueueLearnerConfig = field(default_factory=QueueLearnerConfig)

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        _acted_for(self)
        _at_most("learner.unrolls", self.learner.unrolls, "queue.capacity", self.queue.capacity)
        _at_most("actor.num", self.actor.num, "queue.capacity", self.queue.capacity)  # each has a share of it


@dataclass(frozen=True, kw_only=True)
class LockstepRun(Config[A]):
    """A run whose learner takes one unroll of its own version from every actor, while all of them wait for the next."""

    inference: InferenceConfig = field(default_factory=InferenceConfig)
    learner: UnrollLearnerConfig = field(default_factory=UnrollLearnerConfig)

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        _acted_for(self)
        anneals = getattr(self.algorithm, "anneal_clip", False)
        check(
            not anneals or self.learner.anneal_env_steps > 0,
            "algorithm.anneal_clip must be false while learner.anneal_env_steps is 0, got true",
        )


TREES: dict[Topology, type[Config[Any]]] = {
    "replay": ReplayRun,
    "queue": QueueRun,
    "lockstep": LockstepRun,
    "gradients": GradientsRun,
}
"""The tree of settings of a run of each topology"""

ORDER = ("env", "algorithm", "actor", "inference", "replay", "queue", "learner", "params")
"""In which sections are written, before all others: along the way of a step"""


def with_replay(config: Config[Any], what: str) -> ReplayRun[Any]:
    """Return the settings of a run that has a replay, or say that `what` knows no other."""
    if not isinstance(config, ReplayRun):
        raise UsageError(f"{what} must be of an algorithm with a replay; {algorithm_name(config)} has none")
    return config


class Preset(NamedTuple):
    """Settings that come with Starling."""

    name: str
    description: str
    text: str


def presets() -> list[Preset]:
    """Return every preset by name; its first line describes it."""
    folder = files("cluster") / "presets"
    found = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            text = file.read_text("utf-8")
            found.append(Preset(file.name.removesuffix(".toml"), text.partition("\n")[0].strip("# "), text))
    return found


def preset(name: str) -> Preset:
    """Return the preset of this name."""
    known = {preset.name: preset for preset in presets()}
    if name not in known:
        raise ConfigError(
            f"preset must be one of {', '.join(known)} or a file ending in .toml, got {shown(name)}"
            f"{did_you_mean(name, known)}"
        )
    return known[name]


def is_file(source: str) -> bool:
    """Whether a preset or a file is meant."""
    return source.endswith(".toml") or "/" in source or os.sep in source


def load(source: str, flags: Sequence[Flag] = (), *extra: Layer, also: Iterable[str] = ()) -> Config[Any]:
    """Build the settings of a preset or a file, under the flags; `also` names flags that are no settings.

    A file may begin with `preset = "cartpole"`: it is then laid over that preset.
    """
    below = read_layers(source)
    cls = config_type(below)
    _refuse_other_sections(cls, below, flags)
    named = any(flag.key == "algorithm.name" for flag in flags)
    check(not named, "algorithm.name must be set in a file, since it says which settings there are, got a flag")
    return build(cls, *_without_name(below), *layers(flags, cls, also), *extra)


def _refuse_other_sections(cls: Any, below: Sequence[Layer], flags: Sequence[Flag]) -> None:
    """Say of a section that only runs of other topologies have that this one has none."""
    own = {field.name for field in fields(get_origin(cls))}
    others = {field.name for tree in TREES.values() for field in fields(tree)} - own
    found = [(section, layer.origin) for layer in below for section in layer.values]
    found += [(flag.key.removeprefix("no_").partition(".")[0], f"flag {flag.name}") for flag in flags]
    for section, origin in found:
        there = ", ".join(name for name in (*ORDER, "evaluator", "goal", "checkpoint") if name in own)
        check(section not in others, f"sections must be of {there} for this algorithm, got {section} (from {origin})")


def parse(text: str) -> Config[Any]:
    """Build the settings from the text of `dump`."""
    tables = [parse_toml(text, "resolved settings")]
    return build(config_type(tables), *_without_name(tables))


def read_layers(source: str) -> list[Layer]:
    """Read the tables beneath the flags: a preset or a file, laid over the preset that it names, if it does."""
    layer = read_toml(Path(source)) if is_file(source) else parse_toml(preset(source).text, f"preset {source}")
    if "preset" not in layer.values:
        return [layer]
    name = layer.values["preset"]
    check(
        isinstance(name, str) and not is_file(name), f"preset must be a name, got {shown(name)} (from {layer.origin})"
    )
    rest = {key: value for key, value in layer.values.items() if key != "preset"}
    return [*read_layers(name), Layer(layer.origin, rest)]


def config_type(tables: Sequence[Layer]) -> Any:
    """Return the type of the tree that holds the settings of the algorithm named in the tables."""
    name, origin = DEFAULT_ALGORITHM, ""
    for layer in tables:
        section = layer.values.get("algorithm")
        if isinstance(section, dict) and "name" in section:
            name, origin = section["name"], layer.origin
    known = isinstance(name, str) and name in ALGORITHMS
    near = did_you_mean(name, ALGORITHMS) if isinstance(name, str) else ""
    check(known, f"algorithm.name must be one of {', '.join(ALGORITHMS)}, got {shown(name)} (from {origin}){near}")
    choice = ALGORITHMS[name]
    tree: Any = TREES[choice.topology]
    return tree[choice.config]


def algorithm_name(config: Config[Any]) -> str:
    """Return the name under which the algorithm was chosen: each has a type of settings of its own."""
    return next(name for name, entry in ALGORITHMS.items() if entry.config is type(config.algorithm))


def topology_of(config: Config[Any]) -> Topology:
    """Return where unrolls go for the algorithm to learn."""
    return ALGORITHMS[algorithm_name(config)].topology


def dump(config: Config[Any]) -> str:
    """Write the resolved settings as TOML, from which `load` builds the same tree."""
    table = as_table(config)
    section = table["algorithm"]
    table["algorithm"] = type(section)({"name": algorithm_name(config)} | section)
    return to_toml({name: table[name] for name in ORDER if name in table} | table)


def _without_name(tables: Sequence[Layer]) -> list[Layer]:
    stripped = []
    for layer in tables:
        section = layer.values.get("algorithm")
        if isinstance(section, dict):
            rest = {key: value for key, value in section.items() if key != "name"}
            layer = Layer(layer.origin, {**layer.values, "algorithm": rest})
        stripped.append(layer)
    return stripped


def _acted_for(config: "ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any]") -> None:
    """Check what central inference asks of the actors."""
    inference, copies = config.inference, config.env.copies
    fetch_every = getattr(config.actor, "fetch_every", 0)
    if inference.placement == "central":
        check(
            fetch_every == 0,
            "actor.fetch_every must be 0 with central inference, which always acts by the newest parameters, "
            f"got {fetch_every}",
        )
        _at_most("inference.num", inference.num, "actor.num", config.actor.num)
        check(
            copies % inference.groups == 0,
            f"inference.groups must divide env.copies = {copies} into groups of one size, got {inference.groups}",
        )


def _at_most(key: str, value: int, limit_key: str, limit: int) -> None:
    check(value <= limit, f"{key} must be at most {limit_key} = {limit}, got {value}")
