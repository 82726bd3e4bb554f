"""A Ray of the benchmark's own, and the least that a call to it can cost."""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster import user_folder
from cluster.bench.figure import Work, rates
from cluster.ray_node import FOLDER
from cluster.supervisor import start_ray

IN_FLIGHT = 2  # as an actor's unrolls


class Idle:
    """A process that does nothing."""

    def nothing(self) -> None:
        """Answer."""


@contextmanager
def started_ray() -> Iterator[None]:
    """Start Ray as a run does, in the folder that this process was given."""
    folder = Path(os.environ[FOLDER])
    os.chdir(folder.parent)  # Ray's processes look for modules first where they are started from
    start_ray(folder)
    user_folder.enter()
    try:
        yield
    finally:
        ray.shutdown()


def idle() -> Any:
    """Start a process that does nothing."""
    return ray.remote(Idle).options(num_cpus=0.1).remote()


def round_trip(handle: Any) -> Work:
    """Return a call that does nothing, waited for."""

    def work() -> int:
        ray.get(handle.nothing.remote())
        return 1

    return work


def calls_per_s(seconds: float) -> float:
    """Return how many calls that do nothing one process makes, two of them in flight."""
    handle = idle()
    flying = deque([handle.nothing.remote() for _ in range(IN_FLIGHT)])

    def work() -> int:
        ray.get(flying.popleft())
        flying.append(handle.nothing.remote())
        return 1

    (calls,) = rates([work], seconds)
    ray.kill(handle)
    return calls
