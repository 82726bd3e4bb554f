"""How those who play are made: actors with networks of their own or without, who acts for them, gradient workers."""

from dataclasses import replace
from typing import Any

import numpy as np

from actors.central import CentralRollout
from actors.envs import make_copies
from actors.gathering import Gathering
from actors.gradients import GradientWorker
from actors.inference import Inference
from actors.rollout import Rollout
from actors.worker import Actor, ActorConfig, OwnNetworks, Player
from cluster.config import Config, GradientsRun, LockstepRun, QueueRun, ReplayRun
from cluster.figures import INFERENCE
from cluster.roles import FRESH, Start, actor_seed, build_algorithm, inference_seed
from starling.gradients import GradientSink
from starling.metrics import Clock
from starling.networks.forward import build_forward
from starling.questions import ActionSource
from starling.spec import Spec
from starling.types import ParamSource, Place, ReplaySink


def build_actor(
    config: ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    sink: ReplaySink,
    params: ParamSource | None = None,
    inference: ActionSource | None = None,
    generation: int = 0,
    start: Start = FRESH,
) -> Actor:
    """Return actor number `index` with environment copies of its own."""
    player = _player(config, spec, index, start.past.number, generation, params, inference)
    return Actor(config.actor, player, sink, clock)


def build_unroll_actor(
    config: QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    learner: ReplaySink,
    newest: ParamSource | None = None,
    **more: Any,
) -> Actor:
    """Return the same of those who send to the learner itself, and want parameters soon."""
    return build_actor(config, spec, index, clock, learner, newest, **more)


def _player(
    config: ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    index: int,
    number: int,
    generation: int,
    params: ParamSource | None,
    inference: ActionSource | None,
) -> Player:
    """Return what an actor plays by: networks of its own, or those of an inference role."""
    lockstep = isinstance(config, LockstepRun)
    if inference is None:
        assert params is not None, "networks need parameters"
        every = config.actor.fetch_every if isinstance(config.actor, ActorConfig) else 0
        return OwnNetworks(_rollout(config, spec, index, number, generation), params, every, lockstep)
    size = config.env.copies // config.inference.groups
    groups = [make_copies(replace(config.env, copies=size)) for _ in range(config.inference.groups)]
    place = Place(index, config.actor.num, config.env.copies)
    seed = actor_seed(config, index, number, generation)
    return CentralRollout(groups, build_algorithm(config), inference, place, *seed, ahead=not lockstep)


def build_inference(
    config: ReplayRun[Any] | QueueRun[Any] | LockstepRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    generation: int = 0,
    number: int = 0,
    **params: ParamSource,
) -> Inference:
    """Return inference role number `index` after checkpoint `number`, which follows the one source of parameters."""
    algorithm, settings = build_algorithm(config), config.inference
    forward = build_forward(algorithm.acting(spec), spec, settings.device)
    if settings.threads > 1:
        import torch  # who asks for its threads has it

        torch.set_num_threads(settings.threads)
    (source,) = params.values()
    return Inference(
        f"{INFERENCE}[{index}]",
        algorithm,
        spec,
        forward,
        source,
        config.actor.num,
        config.env.copies,
        np.random.default_rng(inference_seed(config, index, number, generation)),
        clock,
        Gathering(settings.deadline_s, settings.max_copies),
    )


def build_worker(
    config: GradientsRun[Any],
    spec: Spec,
    index: int,
    clock: Clock,
    gradients: GradientSink,
    generation: int = 0,
    number: int = 0,
) -> GradientWorker:
    """Return worker number `index` after checkpoint `number`, with environment copies and networks of its own."""
    import torch  # only processes that differentiate pay for it

    from starling.networks.differentiator import Differentiator

    if config.runtime == "ray":  # in a process of its own
        torch.set_flush_denormal(True)
    algorithm = build_algorithm(config)
    seed, incarnation = actor_seed(config, index, number, generation)
    rollout = _rollout(config, spec, index, number, generation)
    learning = Differentiator(algorithm, spec, seed)
    clip_norm = float(config.params.clip_norm)
    return GradientWorker(config.actor, clip_norm, rollout, learning, gradients, incarnation, clock)


def _rollout(config: Config[Any], spec: Spec, index: int, number: int, generation: int) -> Rollout:
    algorithm = build_algorithm(config)
    return Rollout(
        make_copies(config.env),
        algorithm,
        build_forward(algorithm.acting(spec), spec),
        Place(index, config.actor.num, config.env.copies),
        *actor_seed(config, index, number, generation),
    )
