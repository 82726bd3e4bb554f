"""`starling ls`: the runs of a folder, a line each."""

from pathlib import Path

from cluster.board import count, number
from cluster.commands.options import RunsOptions, print_help, read, wants_help
from cluster.run_folder import Run, find_runs
from starling.errors import check


def main(args: list[str]) -> int:
    """Print a line for each run, the newest last."""
    if wants_help(args):
        return print_help(RunsOptions(), "ls", "", "List the runs.")
    before, options = read(args, RunsOptions)
    check(not before, f"ls must be given flags only, got {' '.join(before)}")
    runs = find_runs(Path(options.runs))
    if not runs:
        print(f"no runs in {options.runs}")
        return 0
    rows = [("run", "state", "steps", "best", "started"), *map(_row, runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(run: Run) -> tuple[str, ...]:
    best = run.best_mean()
    steps = run.last("metrics.jsonl").get("env_steps", 0)
    started = str(run.env().get("started"))[:16].replace("T", " ")
    return run.name, run.state(), count(steps), "-" if best is None else number(best), started
