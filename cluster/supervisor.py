"""The supervisor: a run's Ray driver. It makes the roles, keeps them alive, and writes down what they say.

Started by the launcher as `python -m cluster.supervisor RUN_FOLDER`; it ends when the run is over, when it is asked
to by SIGTERM, or when the launcher is gone.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from actors.envs import measure_spec
from cluster import launch
from cluster.config import Config, load
from cluster.course import Course
from cluster.members import Members
from cluster.ray_node import RayNode, open_listeners
from cluster.report import Outcome
from cluster.reporter import Reporter, attached
from cluster.roles import Start
from starling.errors import ClusterError, RoleError, StarlingError
from starling.metrics import Clock
from starling.params import Params
from starling.spec import Spec

TICK_S = 0.1
PARAMS_LIMIT_S = 10.0
OBJECT_STORE_BYTES = 512 << 20


class Supervisor:
    """Watches the roles of one run until its course is over."""

    def __init__(self, config: Config[Any], spec: Spec, course: Course, clock: Clock, start: Start | None) -> None:
        self._config = config
        self._course = course
        self._clock = clock
        self._members = Members(clock, course.note)
        self._start = start
        launch.replay(self._members, config, spec, clock, start)

    def run(self, stopped: Callable[[], bool]) -> Outcome:
        """Turn until the goal is reached, a budget is spent, or somebody asks to stop."""
        self._members.start()
        reason = None
        while reason is None:
            time.sleep(TICK_S)
            for name, beat in self._members.watch().items():
                self._hear(name, beat.news)
            self._course.sample(self._stats)
            reason = self._course.over(stopped())
        version, params = self._newest_params()
        for name, beat in self._members.stop().items():
            self._hear(name, beat.news)
        self._course.sample(self._stats, now=True)
        return self._course.end(reason, version, params)

    def _hear(self, name: str, news: Any) -> None:
        counts = [self._members.counts(member) for member in self._members.names()]
        self._course.advance(*(sum(c.get(key, 0) for c in counts) for key in ("env_steps", "updates")))
        self._course.hear(int(name.partition("[")[2].rstrip("]")), news)
