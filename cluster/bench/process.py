"""Each benchmark in a process of its own, whose environment is a run's: one thread per process, and Ray's settings.

Started as `python -m cluster.bench.process NAME SOURCE SECONDS PIPE`; what it starts, it takes with it.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from cluster.bench.figure import Figure
from cluster.config import Config, GradientsRun, LockstepRun, QueueRun, ReplayRun, is_file, load, topology_of
from cluster.ray_node import RayNode
from cluster.rows import as_row, json_line
from cluster.user_folder import append_to_path, own_module
from starling.errors import RoleError, UsageError

END_LIMIT_S = 15.0


class Bench(NamedTuple):
    """What is measured, and for runs of which kinds."""

    module: str
    runs: tuple[type[Config[Any]], ...]


WITH_A_LEARNER = ReplayRun, QueueRun, LockstepRun
BENCHES = {
    "actors": Bench("cluster.bench.actors", WITH_A_LEARNER),
    "learner": Bench("cluster.bench.learner", WITH_A_LEARNER),
    "replay": Bench("cluster.bench.replay", (ReplayRun,)),
    "queue": Bench("cluster.bench.queue", (QueueRun,)),
    "inference": Bench("cluster.bench.inference", (ReplayRun, QueueRun)),
    "params": Bench("cluster.bench.params", (*WITH_A_LEARNER, GradientsRun)),
    "train": Bench("cluster.bench.train", WITH_A_LEARNER),
}


def benches_for(config: Config[Any]) -> list[str]:
    """Return the benchmarks that a run of these settings has something to measure for."""
    return [name for name, bench in BENCHES.items() if isinstance(config, bench.runs)]


def require_fit(name: str, config: Config[Any], preset: str) -> None:
    """Refuse to measure what a run of these settings does not have."""
    fitting = benches_for(config)
    if name not in fitting:
        raise UsageError(
            f"bench must be one of {', '.join(fitting)}, all for preset {preset}, whose topology is "
            f"{topology_of(config)}, got {name}"
        )


def run_bench(name: str, source: str, seconds: float) -> list[Figure]:
    """Return the figures of one benchmark at the settings of a preset or a file; nothing that it started is left."""
    node = RayNode.prepare()
    try:
        rows, code, said = _measured([name, source, str(seconds)], node.environment(os.environ))
    finally:
        node.kill()
        node.remove()
    if code:
        raise RoleError(f"bench {name} ended with code {code}: {said}")
    return [Figure(**row) for row in rows]


def _measured(arguments: list[str], environment: dict[str, str]) -> tuple[list[dict[str, Any]], int, str]:
    """Return what the process measured, its exit code, and the last line of what it said."""
    read_end, write_end = os.pipe()
    command = own_module("cluster.bench.process", *arguments, str(write_end))
    with tempfile.TemporaryFile() as log, os.fdopen(read_end, encoding="utf-8") as pipe:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, pass_fds=(write_end,))
        os.close(write_end)
        try:
            rows = [json.loads(line) for line in pipe]
        finally:
            code = process.wait(timeout=END_LIMIT_S)  # at Ctrl-C too: it heard of it, and ends what it started
        log.seek(0)
        said = log.read().decode("utf-8", "replace").strip().splitlines() or ["nothing"]
    return rows, code, said[-1]


def main() -> None:
    """Measure, and send a line for each figure."""
    append_to_path(os.getcwd())
    name, source, seconds, pipe = sys.argv[1:]
    config = load(source)
    figures: list[Figure] = import_module(BENCHES[name].module).measure(config, stem(source), float(seconds))
    with os.fdopen(int(pipe), "w", encoding="utf-8") as out:
        out.writelines(f"{json_line(as_row(figure))}\n" for figure in figures)


def stem(source: str) -> str:
    """Return what names the settings in a figure's name."""
    return Path(source).stem if is_file(source) else source


if __name__ == "__main__":
    main()
