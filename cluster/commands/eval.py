"""`starling eval RUN`: greedy, held-out episodes of a run's best or latest parameters."""

import time
from dataclasses import dataclass
from pathlib import Path

from cluster.board import count, number
from cluster.checkpoints import Which
from cluster.commands.options import only, print_help, read, wants_help
from cluster.config import load
from cluster.rows import json_line
from cluster.run_folder import find_run, load_params
from starling.config import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """How a run is judged."""

    episodes: int | None = None
    """held-out episodes; default: the run's"""
    seed: int | None = None
    """chooses the episodes; default: the run's"""
    which: Which = "best"
    """checkpoint"""
    json: bool = False
    """print a line of JSON"""
    runs: str = "runs"
    """folder of all runs"""


def main(args: list[str]) -> int:
    """Evaluate, and print the mean return."""
    if wants_help(args):
        return print_help(EvalOptions(), "eval", "RUN", "Play a run's parameters greedily.")
    before, options = read(args, EvalOptions)
    run = find_run(Path(options.runs), only(before, "eval", "RUN"))
    chosen = {name: value for name in ("episodes", "seed") if (value := getattr(options, name)) is not None}
    over = [Layer(f"flag --{name}", {"evaluator": {name: value}}) for name, value in chosen.items()]
    config = load(str(run.config), (), *over)
    params, manifest = load_params(run, options.which)

    from actors.envs import measure_spec
    from cluster.roles import build_evaluator, build_param_server

    clock = time.monotonic
    evaluator = build_evaluator(config, measure_spec(config.env), clock, build_param_server(clock))
    evaluation = evaluator.evaluate(manifest["version"], params)
    evaluator.close()
    episodes = len(evaluation.returns)
    row = {"run": run.name, "which": options.which, "version": manifest["version"], "env_steps": manifest["env_steps"]}
    if options.json:
        print(json_line({**row, "mean": evaluation.mean, "std": evaluation.std, "episodes": episodes}))
    else:
        print(
            f"return {number(evaluation.mean)} +- {number(evaluation.std)} over {episodes} episodes  "
            f"({options.which} of {run.name}, version {row['version']}, {count(row['env_steps'])} steps)"
        )
    return 0
