"""`starling replay RUN`: what a run's replay holds; `replay import` and `replay export` bring data in and out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.commands import replay_data
from cluster.commands.options import only, print_help, read, wants_help
from cluster.config import ReplayRun, load, with_replay
from cluster.contents import replay_folder
from cluster.png import Pixels, png, sheet
from cluster.replay_report import figures_of, lines_of, window_lines
from cluster.replay_view import Held, Layout, Order, pictures_of, shards_in
from cluster.rows import json_line
from cluster.run_folder import Run, find_run
from starling.config import did_you_mean
from starling.errors import DataError, check

PARTS = {"import": replay_data.import_, "export": replay_data.export}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What is looked at."""

    shard: int | None = None
    """number of the shard; default: all"""
    windows: Order | None = None
    """show windows too, these first"""
    count: int = 10
    """how many of them, of each shard"""
    frames: str | None = None
    """file (.png) for the observations of these windows, a line each; by itself of the newest"""
    json: bool = False
    """print lines of JSON, one for each shard"""
    runs: str = "runs"
    """folder of all runs"""

    def __post_init__(self) -> None:
        check(self.shard is None or self.shard >= 0, f"shard must be >= 0, got {self.shard}")
        check(self.count >= 1, f"count must be >= 1, got {self.count}")
        frames = self.frames
        check(frames is None or frames.endswith(".png"), f"frames must be a file ending in .png, got {frames}")


def main(args: list[str]) -> int:
    """Print what every shard holds."""
    if args and args[0] in PARTS:
        return PARTS[args[0]](args[1:])
    if wants_help(args):
        what = (
            "Say what a run's replay holds. starling replay import FILES --run RUN brings recorded data in, and "
            "starling replay export RUN --out FILE out; each has a --help of its own."
        )
        return print_help(ReplayOptions(), "replay", "RUN", what)
    before, options = read(args, ReplayOptions)
    if len(before) > 1:
        got = " ".join(before)
        check(False, f"replay must be given one RUN before its flags, got {got}{did_you_mean(before[0], PARTS)}")
    run = find_run(Path(options.runs), only(before, "replay", "RUN"))
    _print(run, options)
    return 0


def _print(run: Run, options: ReplayOptions) -> None:
    config = with_replay(load(str(run.config)), f"run {run.name}")
    shards = config.replay.shards
    check(options.shard is None or options.shard < shards, f"shard must be below {shards}, got {options.shard}")
    chosen = range(shards) if options.shard is None else [options.shard]
    contents = shards_in(replay_folder(config.replay, run.path))
    roles = run.last("metrics.jsonl").get("roles", {})
    if not contents:
        _print_figures_alone(
            run, config, {shard: roles.get(f"replay_server[{shard}]", {}) for shard in chosen}, options
        )
        return
    layout = Layout.of(config)
    pictures: list[list[Pixels]] = []
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for index in chosen:
        if index not in contents:
            console.print(f"shard {index}  nothing on this machine's disk yet")
            continue
        held = Held(contents[index], layout)
        windows = list(held.windows(options.windows or "newest", options.count))
        if options.frames:
            pictures += pictures_of(contents[index], windows, layout.spec.env)
        shown = windows if options.windows else []
        figures = figures_of(index, held, layout.row_bytes) | {
            "live": roles.get(f"replay_server[{index}]", {}).get("gauges", {})
        }
        if options.json:
            print(json_line({**figures, "list": [asdict(window) for window in shown]}))
            continue
        for line in (*lines_of(figures, bars=console.is_terminal), *window_lines(shown)):
            console.print(line)
    if options.frames:
        _save(Path(options.frames), pictures)


def _print_figures_alone(
    run: Run, config: ReplayRun[Any], roles: Mapping[int, Mapping[str, Any]], options: ReplayOptions
) -> None:
    """Say what the run's last second said; what is not on the disk cannot be looked at."""
    asked = options.windows is not None or options.frames is not None
    why = f"the contents of {run.name} are not on the disk ({_absence(run, config)})"
    check(not asked, f"windows must be on the disk to be shown, and {why}")
    for index, stats in roles.items():
        gauges = stats.get("gauges", {})
        if options.json:
            print(json_line({"shard": index, "live": gauges}))
        else:
            rows, capacity = int(gauges.get("rows", 0)), int(gauges.get("capacity", 0))
            print(f"shard {index}  {rows:,} of {capacity:,} rows · {int(gauges.get('windows', 0)):,} windows")
    if not options.json:
        print(f"{why}; these are the figures of its last second")


def _absence(run: Run, config: ReplayRun[Any]) -> str:
    if config.replay.durability == "none":
        return "replay.durability is none"
    return f"there is nothing in {replay_folder(config.replay, run.path)}"


def _save(path: Path, pictures: list[list[Pixels]]) -> None:
    if not pictures:
        raise DataError(f"frames must be of windows, and there are none yet; {path} was not written")
    try:
        path.write_bytes(png(sheet(pictures)))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
