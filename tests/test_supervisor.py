"""What the supervisor keeps of a run when somebody who should be asked is down."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.envs import measure_spec
from cluster.config import load
from cluster.course import Course, Past
from cluster.inbox import inbox_of
from cluster.report import CheckpointDue, Event
from cluster.roles import build_algorithm
from starling.flags import Flag
from starling.networks.arrays import layout_of
from starling.state import State, pack_state
from starling.types import Array

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_ray")]

UPDATES, TICKS = 1000, 5


class Down:
    """Members of which one answers no more, though nobody has noticed: of some it is known how they stood."""

    def __init__(self, states: Mapping[str, Array], kept: Mapping[str, Array]) -> None:
        self._states, self._kept = states, kept

    def start(self) -> None:
        """Have all of them there."""

    def watch(self) -> dict[str, Any]:
        return {}

    def stop(self) -> dict[str, Any]:
        return {}

    def names(self) -> list[str]:
        return [*self._states, *self._kept]

    def is_up(self, name: str) -> bool:
        return True

    def counts(self, name: str) -> dict[str, int]:
        return {"updates": UPDATES, "pushes_applied": UPDATES}

    def total(self, kind: str, counter: str) -> int:
        return 1

    def stats(self, name: str) -> dict[str, Any]:
        return {}

    def ask(self, name: str, method: str, *args: Any, limit_s: float) -> Any:
        return self._states.get(name) if method == "state" else None

    def kept(self, name: str) -> Array | None:
        return self._kept.get(name)


def state(version: int, values: Sequence[float] = ()) -> Array:
    return pack_state(State({"values": np.array(values, np.float32)}, {"version": version}))


def run_with(members: Any, preset: str, folder: Path) -> list[Event]:
    from cluster.supervisor import Supervisor

    config, told, ticks = load(preset, [Flag("--checkpoint.every", ["1"])]), list[Event](), iter([False] * TICKS)
    spec = measure_spec(config.env)
    course = Course(config.goal, told.append, lambda: 0.0, Past())
    inbox = inbox_of(str(folder), config, spec, course.note, lambda: 0.0)
    outcome = Supervisor(members, course, config, spec, inbox).run(lambda: next(ticks, True))
    assert outcome.reason == "interrupted"
    return told


def test_no_checkpoint_is_made_of_what_a_learner_that_died_had_been(tmp_path: Path) -> None:
    members = Down({"evaluator[0]": state(1)}, {"learner[0]": state(11)})

    told = run_with(members, "cartpole-impala", tmp_path)

    assert [event for event in told if isinstance(event, CheckpointDue)] == []


def test_a_slice_that_is_down_is_kept_as_it_was_last_heard_only_when_the_run_ends(tmp_path: Path) -> None:
    config = load("cartpole-a3c")
    spec = measure_spec(config.env)
    size = layout_of(build_algorithm(config).acting(spec), spec).size
    halves = [1.0] * (size // 2), [2.0] * (size - size // 2)
    members = Down(
        {"evaluator[0]": state(1), "param_server[0]": state(40, halves[0])}, {"param_server[1]": state(39, halves[1])}
    )

    told = run_with(members, "cartpole-a3c", tmp_path)

    (due,) = [event for event in told if isinstance(event, CheckpointDue)]
    assert due.version == 39
    np.testing.assert_array_equal(due.params.buffer, [*halves[0], *halves[1]])
    assert set(due.states) == {"evaluator[0]", "param_server[0]", "param_server[1]"}
