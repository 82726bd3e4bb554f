"""Things that may hang, crash or leave processes behind, each tried in a process of its own with a time limit.

Started by `attempt` as `python -m cluster.trials NAME [ARGUMENT]`; the answer is a line of JSON.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.checkup import Trial
from cluster.ray_node import FOLDER, MARK, RayNode, open_listeners, processes_marked
from cluster.user_folder import append_to_path, own_module
from starling.errors import ClusterError, StarlingError

POLL_S = 0.05
STEPS, STEPPING_S = 2_000, 0.3


def attempt(name: str, *arguments: str, limit_s: float, stopped: Callable[[], bool]) -> Trial:
    """Try something as a run would meet it: in its environment, with a private folder; nothing of it stays."""
    try:
        node = RayNode.prepare()
    except OSError as error:
        return Trial(None, str(error))
    try:
        return _attempt(node, [name, *arguments], limit_s, stopped)
    finally:
        node.kill()
        node.remove()


def _attempt(node: RayNode, arguments: list[str], limit_s: float, stopped: Callable[[], bool]) -> Trial:
    said, answered = node.folder / "said", node.folder / "answered"
    # files, not pipes: whoever outlives the trial would keep a pipe open
    with said.open("wb") as errors, answered.open("wb") as output:
        process = subprocess.Popen(
            own_module("cluster.trials", *arguments),
            env=node.environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    began = time.monotonic()
    while process.poll() is None:
        if stopped() or time.monotonic() - began > limit_s:
            node.kill()
            process.wait()
            if stopped():
                raise KeyboardInterrupt
            return Trial(None, f"no end after {limit_s:g} s")
        time.sleep(POLL_S)
    return _read(process.returncode, _last_line(answered), _last_line(said))


def _read(code: int, answer: str, said: str) -> Trial:
    if code < 0:
        return Trial(None, f"ended by {signal.Signals(-code).name}")
    return Trial(json.loads(answer)) if code == 0 else Trial(None, said or f"ended with code {code}")


def _last_line(path: Path) -> str:
    lines = path.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""


def try_ray() -> dict[str, Any]:
    """Start Ray as a supervisor does, call an actor, and look at who listens where and who can read its folder."""
    began = time.monotonic()
    import ray

    from cluster.supervisor import start_ray

    folder = Path(os.environ[FOLDER])
    os.chdir(folder.parent)  # Ray's processes look for modules first where they are started from
    try:
        start_ray(folder)
    except ClusterError as error:
        raise ClusterError(str(error.__cause__ or error)) from None
    started = time.monotonic()
    answerer: Any = ray.remote(Answerer)
    ray.get(answerer.options(num_cpus=1).remote().answer.remote())
    answered = time.monotonic()
    found = open_listeners(processes_marked(os.environ[MARK]))
    private = folder.parent.stat().st_mode & 0o077 == 0
    ray.shutdown()
    return {"start_s": started - began, "answer_s": answered - started, "open": found, "private": private}


class Answerer:
    """The smallest actor."""

    def answer(self) -> int:
        """Return something."""
        return os.getpid()


def try_env(env: str) -> dict[str, Any]:
    """Make an environment, measure it, and step it for a moment."""
    import numpy as np

    from actors.copies import EnvConfig, seed_numbers
    from actors.envs import make_copies, measure_spec

    config = EnvConfig(id=env, copies=1)
    spec = measure_spec(config)
    copies = make_copies(config)
    copies.reset(seed_numbers(np.random.SeedSequence(0), 1))
    steps, began = 0, time.perf_counter()
    while steps < STEPS and time.perf_counter() - began < STEPPING_S:
        copies.step(spec.action.zeros(1))
        steps += 1
    took_s = time.perf_counter() - began
    copies.close()
    shape = "x".join(map(str, spec.obs.shape)) or "1"
    actions = f"{spec.num_actions} actions" if spec.num_actions else f"actions {spec.action.shape} {spec.action.dtype}"
    return {"obs": f"{shape} {spec.obs.dtype}", "actions": actions, "steps_per_s": steps / took_s}


TRIALS: dict[str, Callable[..., dict[str, Any]]] = {"ray": try_ray, "env": try_env}


def main() -> int:
    """Try one thing and print the answer as the last line."""
    os.umask(0o077)
    append_to_path(os.getcwd())
    name, *arguments = sys.argv[1:]
    try:
        answer = TRIALS[name](*arguments)
    except StarlingError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
