"""Topologies: which roles there are, and who talks to whom. Each is one function that reads like its picture."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from cluster.config import GradientsRun, LockstepRun, QueueRun, ReplayRun
from cluster.figures import INFERENCE
from cluster.learners import build_learner, build_unroll_learner
from cluster.players import build_actor, build_inference, build_unroll_actor, build_worker
from cluster.roles import (
    FRESH,
    Start,
    build_evaluator,
    build_param_server,
    build_shard,
    build_slice,
    build_slices_evaluator,
)
from starling.metrics import Clock
from starling.spec import Spec


class Runtime(Protocol):
    """Where roles run: in this process, or each in one of its own."""

    def server(self, kind: str, index: int, build: Callable[..., Any]) -> str:
        """Declare a role that only answers, and return its name."""

    def slice(self, index: int, build: Callable[..., Any]) -> str:
        """Declare a slice of the parameters, and return its name."""

    def loop(self, kind: str, index: int, build: Callable[..., Any], **peers: Sequence[str]) -> str:
        """Declare a role with a loop and the roles that it talks to, and return its name."""


def actions(
    runtime: Runtime,
    config: ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    clock: Clock,
    start: Start,
    **params: Sequence[str],
) -> list[dict[str, Sequence[str]]]:
    """Say where actors have their actions from, in turn: networks that follow `params`, or roles that have those."""
    if config.inference.placement == "local":
        return [params]
    acts: list[dict[str, Sequence[str]]] = []
    for index in range(config.inference.num):
        act = partial(build_inference, config, spec, index, clock, number=start.past.number)
        acts.append({"inference": [runtime.loop(INFERENCE, index, act, **params)]})
    return acts


def replay(runtime: Runtime, config: ReplayRun[Any], spec: Spec, clock: Clock, start: Start = FRESH) -> None:
    """Actors insert into shards, the learner samples from all of them, and everybody follows the parameters."""
    shards = [
        runtime.server(
            "replay_server",
            shard,
            partial(build_shard, config, spec, shard, clock, replay=start.replay),
        )
        for shard in range(config.replay.shards)
    ]
    params = runtime.server("param_server", 0, partial(build_param_server, clock))
    learn = partial(build_learner, config, spec, clock, start=start.only("learner[0]"))
    runtime.loop("learner", 0, learn, source=shards, publisher=[params], params=[params])
    acts = actions(runtime, config, spec, clock, start, params=[params])
    for actor in range(config.actor.num):
        play = partial(build_actor, config, spec, actor, clock, start=start.only(f"actor[{actor}]"))
        own = actor % len(shards)
        sink = [*shards[own:], *shards[:own]]  # its own shard first
        runtime.loop("actor", actor, play, sink=sink, **acts[actor % len(acts)])
    judge = partial(build_evaluator, config, spec, clock, start=start.only("evaluator[0]"))
    runtime.loop("evaluator", 0, judge, judged=[params])


def unrolls(
    runtime: Runtime, config: QueueRun[Any] | LockstepRun[Any], spec: Spec, clock: Clock, start: Start = FRESH
) -> None:
    """Actors send whole unrolls to the learner, which publishes what it learns.

    The picture is the same whether it keeps them in a queue or in a lineup, for which an actor plays once by each
    version: only who waits for whom differs.
    """
    params = runtime.server("param_server", 0, partial(build_param_server, clock))
    learn = partial(build_unroll_learner, config, spec, clock, start=start.only("learner[0]"))
    learner = runtime.loop("learner", 0, learn, publisher=[params], params=[params])
    acts = actions(runtime, config, spec, clock, start, newest=[params])
    for actor in range(config.actor.num):
        play = partial(build_unroll_actor, config, spec, actor, clock, start=start.only(f"actor[{actor}]"))
        runtime.loop("actor", actor, play, learner=[learner], **acts[actor % len(acts)])
    judge = partial(build_evaluator, config, spec, clock, start=start.only("evaluator[0]"))
    runtime.loop("evaluator", 0, judge, judged=[params])


def gradients(runtime: Runtime, config: GradientsRun[Any], spec: Spec, clock: Clock, start: Start = FRESH) -> None:
    """Workers push gradients to slices, each of which moves its part of the parameters and sends it back."""
    slices = [
        runtime.slice(part, partial(build_slice, config, spec, part, clock, start=start.only(f"param_server[{part}]")))
        for part in range(config.params.slices)
    ]
    for worker in range(config.actor.num):
        play = partial(build_worker, config, spec, worker, clock, number=start.past.number)
        runtime.loop("actor", worker, play, gradients=slices)
    judge = partial(build_slices_evaluator, config, spec, clock, start=start.only("evaluator[0]"))
    runtime.loop("evaluator", 0, judge, values=slices)
