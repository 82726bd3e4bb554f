"""`starling train PRESET|FILE.toml`: one run, from its settings to its last line."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, make_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from cluster.board import Subject
from cluster.cli import FAILED, INTERRUPTED, OK
from cluster.commands.options import only, wants_help
from cluster.config import Config, dump, is_file, load
from cluster.preflight import refuse_what_cannot_run
from cluster.provenance import provenance
from cluster.report import Event, Outcome
from cluster.reporter import Reporter
from cluster.run_folder import RunFolder, checked_name, free_name, stem_of
from cluster.signals import StopRequest
from cluster.tensorboard import TensorBoard
from cluster.terminal import Mode, make_view
from starling.config import Layer, build, leaves
from starling.errors import check
from starling.flags import help_text, key_of, layers, split

Engine = Callable[[Config[Any], Callable[[Event], None], Callable[[], bool]], Outcome]
"""Makes a run from its settings: reports events, and stops when it is asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What belongs to this call rather than to the run's settings."""

    run: str | None = None
    """name of the run; default: the preset's, numbered"""
    runs: str = "runs"
    """folder of all runs"""
    total_steps: int | None = None
    """the same as --goal.total-steps; spending what was asked for is success"""
    max_minutes: float | None = None
    """the same as --goal.max-minutes"""
    dry_run: bool = False
    """print the resolved settings, and do nothing"""
    quiet: bool = False
    """print nothing"""
    plain: bool = False
    """print a line every ten seconds, as without a terminal"""
    json: bool = False
    """print lines of JSON"""

    def __post_init__(self) -> None:
        if self.run is not None:
            checked_name(self.run)
        chosen = [f"--{name}" for name in ("quiet", "plain", "json") if getattr(self, name)]
        check(len(chosen) <= 1, f"output must be one of --quiet, --plain, --json, got {' '.join(chosen)}")

    @property
    def mode(self) -> Mode:
        """How the terminal shows the run."""
        return "quiet" if self.quiet else "plain" if self.plain else "json" if self.json else "live"


def main(args: list[str], engine: Engine | None = None) -> int:
    """Train; the engine makes the run, and is the settings' runtime unless a test brings its own."""
    if wants_help(args):
        print(_help(args), end="")
        return 0
    before, flags = split(args)
    source = only(before, "train", "PRESET or FILE.toml")
    own = [flag for flag in flags if key_of(flag, TrainOptions)]
    options = build(TrainOptions, *layers(own, TrainOptions))
    rest = [flag for flag in flags if flag not in own]
    config = load(source, rest, *_goal(options), also=[key for key, _ in leaves(TrainOptions)])
    if options.dry_run:
        print(dump(config), end="")
        return 0
    asked = [flag.key.removeprefix("goal.") for flag in flags]
    command = ["starling", "train", *args]
    return exit_code(_train(config, options, stem_of(source), command, asked, engine or _engine(config)), config)


def exit_code(outcome: Outcome, config: Config[Any]) -> int:
    """Return 1 only for a budget that nobody asked for and that ended short of its goal."""
    if outcome.reason == "interrupted":
        return INTERRUPTED
    return FAILED if outcome.reason == "budget" and config.goal.return_mean is not None else OK


def _train(
    config: Config[Any], options: TrainOptions, stem: str, command: list[str], asked: Sequence[str], engine: Engine
) -> Outcome:
    refuse_what_cannot_run(config)
    runs = Path(options.runs)
    name = options.run or free_name(runs, stem)
    env = provenance(command, datetime.now(UTC))
    with RunFolder.create(runs, name, dump(config), env) as folder:
        console = Console()
        if options.mode in ("live", "plain"):
            console.print(f"run {name}  ->  {folder.path}", markup=False, highlight=False, soft_wrap=True)
        target = config.replay.samples_per_insert
        subject = Subject(path=folder.path, goal=config.goal.return_mean, samples_per_insert=target)
        reporter = Reporter(folder, make_view(options.mode, subject, console), TensorBoard(folder.path / "tb"))
        try:
            with StopRequest() as stopped:
                outcome = _as_asked(engine(config, reporter, stopped), config, asked)
        except BaseException as error:  # kept with the run; whoever called says it
            reporter.failed(error)
            raise
        reporter.ended(outcome)
        return outcome


def _as_asked(outcome: Outcome, config: Config[Any], asked: Sequence[str]) -> Outcome:
    """Tell a budget that the user set for this very run from one that came with the preset."""
    spent = "total_steps" if outcome.env_steps >= config.goal.total_steps else "max_minutes"
    return replace(outcome, reason="asked") if outcome.reason == "budget" and spent in asked else outcome


def _engine(config: Config[Any]) -> Engine:
    if config.runtime == "ray":
        from cluster.launcher import run_ray

        return run_ray
    from cluster.local import run_local  # torch: only where a learner runs in this process

    return run_local


def _goal(options: TrainOptions) -> Iterator[Layer]:
    for name in ("total_steps", "max_minutes"):
        if (value := getattr(options, name)) is not None:
            yield Layer(f"flag --{name.replace('_', '-')}", {"goal": {name: value}})


def _help(args: list[str]) -> str:
    """Return the help with the values of the preset that is named, or of an example."""
    import tyro

    before, _ = split([arg for arg in args if arg not in ("--help", "-h")])
    source = before[0] if before else "cartpole"
    config = load(source)
    flat = tyro.conf.arg(name="")
    parts = [
        ("options", Annotated[TrainOptions, flat, tyro.conf.FlagCreatePairsOff]),
        ("config", Annotated[type_of(config), flat]),
    ]
    both = make_dataclass("Train", parts, frozen=True)(TrainOptions(), config)
    kind = "FILE.toml" if is_file(source) else "preset"
    what = f"Train, and keep the run in a folder. Values are those of the {kind} {source}."
    return help_text(both, "starling train PRESET|FILE.toml", what)


def type_of(config: Config[Any]) -> Any:
    """Return the tree's type with its algorithm's settings filled in."""
    tree: Any = Config
    return tree[type(config.algorithm)]
