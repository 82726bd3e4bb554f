"""`starling bench NAME|all`: how fast this machine makes each role, beside what the machine itself allows."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.bench.figure import Figure
from cluster.bench.process import BENCHES, benches_for, require_fit, run_bench
from cluster.checkpoints import read_json
from cluster.cli import FAILED, OK
from cluster.commands.options import only, print_help, read, wants_help
from cluster.config import load
from cluster.provenance import processor, provenance
from cluster.rows import plain
from starling.config import did_you_mean, shown
from starling.errors import RunError, check

WIDTH = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is measured, and for how long."""

    preset: str = "cartpole"
    """preset or FILE.toml whose settings are measured"""
    seconds: float = 5.0
    """of measuring for each figure and its limit"""
    json: str | None = None
    """file to write figures, machine, versions, commit and command to"""
    baseline: str | None = None
    """such a file; exit 1 if a ratio is smaller than there by more than the tolerance"""
    tolerance: float = 0.25
    """part of a baseline's ratio that noise may take"""

    def __post_init__(self) -> None:
        check(self.seconds > 0.0, f"seconds must be > 0, got {self.seconds}")
        check(0.0 <= self.tolerance < 1.0, f"tolerance must be in [0, 1), got {self.tolerance}")


def main(args: list[str]) -> int:
    """Measure, print a table, and compare."""
    if wants_help(args):
        names = f"NAME: {', '.join(BENCHES)}, or all. A ratio of 1 is at the limit; larger is better."
        return print_help(BenchOptions(), "bench", "NAME", names)
    before, options = read(args, BenchOptions)
    name = only(before, "bench", "NAME")
    known = [*BENCHES, "all"]
    check(name in known, f"bench must be one of {', '.join(known)}, got {shown(name)}{did_you_mean(name, known)}")
    config = load(options.preset)  # a mistake in it is told before anything is started
    if name != "all":
        require_fit(name, config, options.preset)
    baseline = read_baseline(Path(options.baseline)) if options.baseline else {}
    started, load_average = datetime.now(UTC), os.getloadavg()[0]
    chosen = benches_for(config) if name == "all" else [name]
    figures = [figure for bench in chosen for figure in run_bench(bench, options.preset, options.seconds)]
    console = Console()
    console.width = max(console.width, WIDTH)  # a pipe is taken for 80 columns wide
    console.print(table(figures))
    if options.json:
        machine = {**provenance(["starling", "bench", *args], started), **processor(), "load_average": load_average}
        text = json.dumps(plain({**machine, "figures": [figure.row() for figure in figures]}), indent=2)
        Path(options.json).write_text(f"{text}\n", "utf-8")
    slower = regressions(figures, baseline, options.tolerance)
    for sentence in slower:
        print(sentence)
    return FAILED if slower else OK


def table(figures: Sequence[Figure]) -> Table:
    """Return the figures as the terminal shows them."""
    shows = Table(box=None, pad_edge=False)
    shows.add_column("figure", no_wrap=True)
    for heading in ("value", "limit", "ratio"):
        shows.add_column(heading, justify="right", no_wrap=True)
    shows.add_column("unit", no_wrap=True)
    shows.add_column("limit is", no_wrap=True)
    for figure in figures:
        numbers = (readable(figure.value), readable(figure.limit), f"{figure.ratio:.2f}")
        shows.add_row(figure.name, *numbers, figure.unit, figure.limit_name)
    return shows


def readable(value: float) -> str:
    """Return a number with three digits or more that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def regressions(figures: Sequence[Figure], baseline: dict[str, float], tolerance: float) -> list[str]:
    """Say which figures are further from their limit than they were, by more than noise may explain."""
    return [
        f"{figure.name} is at {figure.ratio:.2f} of its limit, and was at {baseline[figure.name]:.2f}"
        for figure in figures
        if figure.ratio < baseline.get(figure.name, 0.0) * (1.0 - tolerance)
    ]


def read_baseline(path: Path) -> dict[str, float]:
    """Return the ratios in a file that `--json` wrote."""
    rows: Any = read_json(path).get("figures")
    try:
        return {str(row["name"]): float(row["ratio"]) for row in rows}
    except (TypeError, KeyError, ValueError):
        raise RunError(f"{path} must be a file that starling bench --json wrote") from None
