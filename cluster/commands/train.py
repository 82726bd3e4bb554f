"""`starling train PRESET|FILE.toml` or `--resume RUN`: one run, from its settings to its last line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from actors.envs import measure
from cluster.board import Subject
from cluster.budget import Plan
from cluster.cli import FAILED, INTERRUPTED, OK
from cluster.commands.options import only, wants_help
from cluster.config import Config, ReplayRun, dump, is_file, load, with_replay
from cluster.contents import replay_folder
from cluster.inbox import FOLDER, deliver
from cluster.preflight import refuse_what_cannot_run
from cluster.provenance import provenance
from cluster.ray_node import OBJECT_STORE_BYTES
from cluster.recorded_files import check_all, recorded, stem_of_data, wanted_by
from cluster.report import Event, Noted, Outcome
from cluster.reporter import Reporter
from cluster.resume import refuse_changes, resumed, taken_from
from cluster.roles import FRESH, Start, build_algorithm
from cluster.run_folder import Run, RunFolder, checked_name, find_run, free_name, stem_of
from cluster.signals import StopRequest
from cluster.tensorboard import TensorBoard
from cluster.terminal import Mode, make_view
from starling.config import Layer, build, leaves
from starling.errors import check
from starling.flags import Flag, help_text, key_of, layers, split
from starling.recordings import Wanted
from starling.spec import Spec

Engine = Callable[[Config[Any], Callable[[Event], None], Callable[[], bool]], Outcome]
"""Makes a run from its settings: reports events, and stops when it is asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What belongs to this call rather than to the run's settings."""

    run: str | None = None
    """name of the run; default: the preset's, numbered"""
    if_exists: Literal["fail", "new", "resume"] = "fail"
    """when a run of this name exists"""
    resume: str | None = None
    """run to go on with, or latest; it keeps its settings, and no preset is named"""
    at: str | None = None
    """checkpoint to go on from; default: the latest"""
    fill: tuple[str, ...] = ()
    """files of recorded data to begin with, as starling replay import takes them"""
    init_from: str | None = None
    """run whose networks a new one begins with, where names and shapes fit"""
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
        check(self.at is None or self.resume is not None, f"at must come with --resume, got {self.at} without")
        both = self.resume is not None and (self.run is not None or self.init_from is not None)
        check(not both, "resume must come without --run and --init-from, got both")
        chosen = [f"--{name}" for name in ("quiet", "plain", "json") if getattr(self, name)]
        check(len(chosen) <= 1, f"output must be one of --quiet, --plain, --json, got {' '.join(chosen)}")

    @property
    def mode(self) -> Mode:
        """How the terminal shows the run."""
        return "quiet" if self.quiet else "plain" if self.plain else "json" if self.json else "live"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call's run: what it learns, where it is kept, and where it begins."""

    config: Config[Any]
    options: TrainOptions
    command: list[str]
    stem: str
    run: Run | None = None  # that goes on
    start: Start = FRESH
    plan: Plan | None = None
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # events at the beginning, by name


def main(args: list[str], engine: Engine | None = None) -> int:
    """Train; the engine makes the run, and is the settings' runtime unless a test brings its own."""
    if wants_help(args):
        print(_help(args), end="")
        return 0
    before, flags = split(args)
    own = [flag for flag in flags if key_of(flag, TrainOptions)]
    options = build(TrainOptions, *layers(own, TrainOptions))
    rest = [flag for flag in flags if flag not in own]
    command = ["starling", "train", *args]
    run = _to_resume(before, options)
    if run is None:
        source = only(before, "train", "PRESET or FILE.toml")
        job = Job(config=_load(source, rest, options), options=options, command=command, stem=stem_of(source))
    else:
        config = _load(before[0] if before else str(run.config), rest, options)
        refuse_changes(run, load(str(run.config)), config)
        job = Job(config=config, options=options, command=command, stem=run.name, run=run)
    if options.dry_run:
        print(dump(job.config), end="")
        return 0
    asked = [flag.key.removeprefix("goal.") for flag in flags]
    return _train(job, asked, engine)


def _load(source: str, flags: Sequence[Flag], options: TrainOptions) -> Config[Any]:
    return _settled(load(source, flags, *_goal(options), also=[key for key, _ in leaves(TrainOptions)]))


def _settled(config: Config[Any]) -> Config[Any]:
    """Return the settings with a replay's folder that is the same one wherever the run is resumed from."""
    if not isinstance(config, ReplayRun) or not config.replay.folder:
        return config
    return replace(config, replay=replace(config.replay, folder=str(Path(config.replay.folder).resolve())))


def _to_resume(before: list[str], options: TrainOptions) -> Run | None:
    """Return the run that goes on, if one was asked for, by itself or by its name."""
    runs = Path(options.runs)
    if options.resume is not None:
        check(not before, f"resume must come without a preset: the run has its settings, got {' '.join(before)}")
        return find_run(runs, options.resume)
    named = options.run is not None and (runs / options.run / "env.json").exists()
    return find_run(runs, str(options.run)) if named and options.if_exists == "resume" else None


def exit_code(outcome: Outcome, config: Config[Any]) -> int:
    """Return 1 only for a budget that nobody asked for and that ended short of its goal."""
    if outcome.reason == "interrupted":
        return INTERRUPTED
    return FAILED if outcome.reason == "budget" and config.goal.return_mean is not None else OK


def _train(job: Job, asked: Sequence[str], engine: Engine | None) -> int:
    config, options = job.config, job.options
    checked = refuse_what_cannot_run(config)
    job = _begun(replace(job, plan=checked.plan), checked.spec)
    wanted = _wanted(config, options.fill)
    with _folder(job) as folder:
        if job.run is not None:
            job = _resumed(job, job.run, folder)  # behind the lock: nobody else writes there now
        else:
            job = replace(job, start=replace(job.start, folder=_kept_in(config, folder.path)))
        filled = _filled(job, wanted)
        console = Console()
        if options.mode in ("live", "plain"):
            for line in (f"run {folder.path.name}  ->  {folder.path}", *_first_lines(job), *filled):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        target = config.replay.samples_per_insert if isinstance(config, ReplayRun) else 0.0
        subject = Subject(path=folder.path, goal=config.goal.return_mean, samples_per_insert=target)
        reporter = Reporter(folder, make_view(options.mode, subject, console), TensorBoard(folder.path / "tb"), config)
        for what, facts in job.notes.items():
            reporter(Noted(elapsed_s=job.start.past.elapsed_s, what=what, facts=facts))
        try:
            with StopRequest() as stopped:
                made = (engine or _engine(job))(config, reporter, stopped)
                outcome = _as_asked(made, config, asked)
        except BaseException as error:  # kept with the run; whoever called says it
            reporter.failed(error)
            raise
        reporter.ended(outcome)
        code = exit_code(outcome, config)
        return code if reporter.is_saved else code or FAILED


def _kept_in(config: Config[Any], run: Path) -> str:
    """Return where what outlives the shards lies; nowhere for a run that has none."""
    return str(replay_folder(config.replay, run)) if isinstance(config, ReplayRun) else ""


def _begun(job: Job, spec: Spec) -> Job:
    """Give a new run the networks that it was told to begin with."""
    if job.options.init_from is None:
        return job
    run = find_run(Path(job.options.runs), job.options.init_from)
    taken = taken_from(run, job.config, spec)
    facts = {"run": run.name, "taken": list(taken.arrays), "left": taken.left}
    return replace(job, start=Start(arrays=taken.arrays), notes={"initialised": facts})


def _wanted(config: Config[Any], fill: Sequence[str]) -> Wanted | None:
    """Refuse recorded data before there is a folder, and return what it must fit, if there is any."""
    if not fill:
        return None
    with_replay(config, "a run that begins with recorded data")
    measured = measure(config.env)
    wanted = wanted_by(config.env, measured, build_algorithm(config).columns(measured.spec))
    check_all(fill, wanted)
    return wanted


def _filled(job: Job, wanted: Wanted | None) -> list[str]:
    """Put recorded data where the runtime takes it up."""
    if wanted is None:
        return []
    inbox, lines = Path(job.start.folder) / FOLDER, []
    for source in job.options.fill:
        written = deliver(inbox, stem_of_data(source), recorded(source, wanted))
        lines.append(f"begins with {source}: {written.steps:,} steps, {written.episodes:,} episodes ended")
    return lines


def _folder(job: Job) -> RunFolder:
    if job.run is not None:
        return RunFolder.reopen(job.run)
    runs, options = Path(job.options.runs), job.options
    again = options.run is not None and options.if_exists == "new" and (runs / options.run).exists()
    name = free_name(runs, options.run or job.stem) if again or options.run is None else options.run
    kept_in = _kept_in(job.config, runs / name)
    taken = (
        bool(kept_in) and Path(kept_in).exists() and not (runs / name).exists()
    )  # by a run of this name from another folder of runs
    check(not taken, f"run must be a new name, got {name}, of which {kept_in} holds the replay already")
    return RunFolder.create(runs, name, dump(job.config), provenance(job.command, datetime.now(UTC)))


def _resumed(job: Job, run: Run, folder: RunFolder) -> Job:
    """Find where the run goes on, and keep the settings with which it does."""
    start, name = resumed(run, job.config, job.options.at)
    folder.change_config(dump(job.config))
    past = start.past
    facts = {"checkpoint": name, "env_steps": past.env_steps, "updates": past.updates, "command": job.command}
    notes: dict[str, dict[str, Any]] = {"resumed": facts}
    if start.lost:
        notes["replay_lost"] = {"why": start.lost}
    return replace(job, start=start, notes=notes)


def _first_lines(job: Job) -> Iterator[str]:
    """Say where a run that does not begin at nothing begins, and what any run will hold in memory."""
    if said := job.notes.get("resumed"):
        yield f"resumed at {said['checkpoint']}: {said['env_steps']:,} steps, {said['updates']:,} updates"
    if said := job.notes.get("replay_lost"):
        windows = with_replay(job.config, "replay").replay.min_windows
        yield f"contents of the replay are lost: {said['why']}; learning waits for {windows:,} windows again"
    if said := job.notes.get("initialised"):
        left = f"; at random: {', '.join(said['left'])}" if said["left"] else ""
        yield f"from {said['run']}: {', '.join(said['taken'])}{left}"
    if job.plan is not None:
        yield f"memory {job.plan}"


def _as_asked(outcome: Outcome, config: Config[Any], asked: Sequence[str]) -> Outcome:
    """Tell a budget that the user set for this very run from one that came with the preset."""
    spent = "total_steps" if outcome.env_steps >= config.goal.total_steps else "max_minutes"
    return replace(outcome, reason="asked") if outcome.reason == "budget" and spent in asked else outcome


def _engine(job: Job) -> Engine:
    if job.config.runtime == "ray":
        from cluster.launcher import run_ray

        store_bytes = OBJECT_STORE_BYTES if job.plan is None else job.plan.store_bytes
        return partial(run_ray, start=job.start, store_bytes=store_bytes)
    from cluster.local import run_local  # torch: only where a learner runs in this process

    return partial(run_local, start=job.start)


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
    tree: Any = type(config)
    return tree[type(config.algorithm)]
