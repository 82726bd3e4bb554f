"""The local runtime: every role in this process, scheduled by counts alone, so that a seed repeats a run bit by bit."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from actors.envs import measure_spec
from actors.inference import LocalInference
from cluster.config import Config
from cluster.contents import SHARD, News
from cluster.course import Course
from cluster.figures import INFERENCE, kind_of
from cluster.inbox import inbox_of
from cluster.report import Event, Outcome
from cluster.roles import FRESH, Start, actor_seed, inference_seed
from cluster.snapshots import snapshot_name
from cluster.topologies import arrangement_of
from learner.local import LocalInlet
from param_server.local import LocalSlices, LocalValues
from replay_server.local import LocalReplay, LocalSink
from starling import wire
from starling.errors import StuckError
from starling.metrics import Clock
from starling.params import Params
from starling.state import Lasting, State
from starling.types import Array


class LocalRuntime:
    """Makes each role as it is declared; neighbours are the objects themselves."""

    def __init__(self) -> None:
        self.roles: dict[str, Any] = {}
        self._loops: list[str] = []
        self._news: list[News] = []

    def server(self, kind: str, index: int, build: Callable[..., Any]) -> str:
        """Make a role that only answers."""
        name = f"{kind}[{index}]"
        self.roles[name] = build(tell=self._news.append) if kind == SHARD else build()
        return name

    def slice(self, index: int, build: Callable[..., Any]) -> str:
        """Make a slice of the parameters."""
        name = f"param_server[{index}]"
        self.roles[name] = build()
        return name

    def loop(self, kind: str, index: int, build: Callable[..., Any], **peers: Sequence[str]) -> str:
        """Make a role with a loop and connect it."""
        name = f"{kind}[{index}]"
        self.roles[name] = build(**{argument: self._connect(argument, roles) for argument, roles in peers.items()})
        self._loops.append(name)
        return name

    def turn(self) -> None:
        """Let every loop do one unit of work; if none can, say who waits for whom."""
        progress = [self.roles[name].step() for name in self._loops]
        if all(p.waits for p in progress):
            raise StuckError(f"every role waits: {'; '.join(p.waits for p in progress)}")

    def of(self, kind: str) -> list[Any]:
        """Return the roles of a kind."""
        return [role for name, role in self.roles.items() if name.startswith(f"{kind}[")]

    def tell(self, course: Course, last: bool = False) -> None:
        """Pass on what the roles have to tell."""
        for index, actor in enumerate(self.of("actor")):
            course.hear(index, actor.take())
        for evaluator in self.of("evaluator"):
            course.hear(0, evaluator.take())
        news, self._news[:] = list(self._news), []
        course.hear(0, news)
        course.sample(lambda: {name: role.stats() for name, role in self.roles.items()}, now=last)

    def states(self, snapshot: str) -> dict[str, State]:
        """Return the state of every role that has one; shards take a snapshot of this name."""
        states = {name: role.state() for name, role in self.roles.items() if isinstance(role, Lasting)}
        for name, role in self.roles.items():
            if kind_of(name) == SHARD:
                role.snapshot(snapshot)
                states[name] = role.taken(snapshot)
        return states

    def begin_again(self, states: Mapping[str, State], config: Config[Any], number: int) -> None:
        """Put every role where it is when a run is resumed from checkpoint `number`.

        The run that goes on does this too, so nothing that a checkpoint leaves out can make a difference. Shards stay
        as they are: their snapshots say all that they will ever use again.
        """
        for name, state in states.items():
            if kind_of(name) != SHARD:
                self.roles[name].restore(state)
        for index, actor in enumerate(self.of("actor")):
            actor.restart(*actor_seed(config, index, number))
        for index, inference in enumerate(self.of(INFERENCE)):
            inference.restart(np.random.default_rng(inference_seed(config, index, number)))

    def fill(self, shard: int, packed: Array, number: int) -> bool:
        """Give a shard recorded data; its number says nothing where every call is answered."""
        self.roles[f"{SHARD}[{shard}]"].fill(wire.decode_unroll(packed), packed)
        return True

    def close(self) -> None:
        """Let go of every environment, and of the shards' files."""
        for role in self.of("actor") + self.of("evaluator") + self.of(SHARD):
            role.close()

    def _connect(self, argument: str, roles: Sequence[str]) -> Any:
        first = self.roles[roles[0]]
        if argument == "source":
            return LocalReplay([self.roles[role] for role in roles])
        if argument == "gradients":
            return LocalSlices([self.roles[role] for role in roles])
        if argument == "values":
            return LocalValues([self.roles[role] for role in roles])
        if argument == "inference":
            return LocalInference(first)
        if argument == "learner":
            return LocalInlet(first.inlet)
        if argument == "sink":
            return LocalSink(first, int(roles[0].partition("[")[2].rstrip("]")))
        return first


def run_local(
    config: Config[Any],
    report: Callable[[Event], None],
    stopped: Callable[[], bool] = lambda: False,
    clock: Clock = time.monotonic,
    start: Start = FRESH,
) -> Outcome:
    """Turn the roles until the goal is reached, a budget is spent, or somebody asks to stop."""
    arrangement = arrangement_of(config)
    runtime = LocalRuntime()
    spec = measure_spec(config.env)
    arrangement.launch(runtime, config, spec, clock, start)
    learning, actors = runtime.of(arrangement.learns), runtime.of("actor")
    course = Course(config.goal, report, clock, start.past)
    inbox = inbox_of(start.folder, config, spec, course.note, clock)

    def keep() -> tuple[Params, Mapping[str, State]]:
        states = runtime.states(snapshot_name(course.number + 1))
        params = arrangement.params(config, spec, states)
        course.checkpoint(arrangement.version(states), params, states)
        return params, states

    while inbox.feed(runtime.fill):
        pass  # all of it: a run that begins with recorded data repeats too
    while (reason := course.over(stopped())) is None:
        inbox.feed(runtime.fill)
        runtime.turn()
        updates = min(role.updates for role in learning) - start.past.updates
        course.advance(sum(actor.env_steps for actor in actors), updates)
        runtime.tell(course)
        if course.checkpoint_due(config.checkpoint.every) and not course.over(stopped=False):
            _, states = keep()
            runtime.begin_again(states, config, course.number)
    runtime.tell(course, last=True)
    params, _ = keep()
    runtime.close()
    return course.end(reason, params)
