"""`starling show RUN`: what a run is, how far it is, and how it ended."""

from pathlib import Path

from cluster.board import duration, number
from cluster.commands.options import RunsOptions, only, print_help, read, wants_help
from cluster.config import algorithm_name, load
from cluster.run_folder import Run, find_run


def main(args: list[str]) -> int:
    """Print a run's facts, a line each."""
    if wants_help(args):
        return print_help(RunsOptions(), "show", "RUN", "Say what a run is and how far it is.")
    before, options = read(args, RunsOptions)
    for name, value in facts(find_run(Path(options.runs), only(before, "show", "RUN"))).items():
        print(f"{name:<10}  {value}")
    return 0


def facts(run: Run) -> dict[str, str]:
    """Return what there is to say about a run."""
    config, env, row = load(str(run.config)), run.env(), run.last("metrics.jsonl")
    best = run.best_mean()
    goal = config.goal.return_mean
    return {
        "run": str(run.path),
        "state": run.state(),
        "learns": f"{config.env.id} by {algorithm_name(config)}, seed {config.seed}",
        "progress": f"{row.get('env_steps', 0):,} steps, {row.get('updates', 0):,} updates, "
        f"{duration(row.get('elapsed_s', 0.0))}",
        "best": ("never evaluated" if best is None else f"return {number(best)}")
        + (f", goal {number(goal)}" if goal is not None else ""),
        "started": f"{env.get('started')} on {env.get('host')}",
        "command": " ".join(env.get("command", [])),
        "commit": str(env.get("commit") or "not a checkout"),
        "settings": str(run.config),
    }
