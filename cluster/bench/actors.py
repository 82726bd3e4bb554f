"""The actor beside a loop that steps the same environments by the same network, and does nothing else."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from actors.copies import Copies, autoreset_mode
from actors.envs import make_copies, measure_spec
from actors.spaces import Spaces
from actors.worker import Actor
from cluster.bench.figure import Figure, Work, rates
from cluster.bench.neighbours import EveryVersion, OneVersion, PackingSink, fresh_params
from cluster.config import Config, LockstepRun, QueueRun, ReplayRun
from cluster.players import build_actor
from cluster.roles import build_algorithm
from starling.networks.forward import build_forward
from starling.params import Params
from starling.spec import Spec
from starling.types import Array


def measure(config: Config[Any], preset: str, seconds: float) -> list[Figure]:
    """Return the environment steps per second of one actor that never waits."""
    spec = measure_spec(config.env)
    params = fresh_params(config, spec)
    actor = actor_that_never_waits(config, spec, params)
    value, limit = rates([lambda: actor.step().work["env_steps"], bare_loop(config, spec, params)], seconds)
    figure = Figure(
        name=f"actors.efficiency.{preset}",
        value=value,
        unit="env_steps/s",
        limit=limit,
        limit_name="a bare loop of the same",
        settings={
            "env": config.env.id,
            "copies": config.env.copies,
            "unroll_length": config.actor.unroll_length,
            "parameters": params.layout.size,
        },
    )
    return [figure]


def actor_that_never_waits(config: Config[Any], spec: Spec, params: Params) -> Actor:
    """Return the run's first actor; in lockstep it finds a new version before every unroll."""
    assert isinstance(config, ReplayRun | QueueRun | LockstepRun)
    source = EveryVersion(params) if isinstance(config, LockstepRun) else OneVersion(params)
    return build_actor(config, spec, 0, time.monotonic, PackingSink(), source)


def bare_loop(config: Config[Any], spec: Spec, params: Params) -> Work:
    """Return the loop: as many steps as an unroll has, of the vector itself."""
    algorithm = build_algorithm(config)
    forward = build_forward(algorithm.acting(spec), spec)
    forward.load(params)
    copies = make_copies(config.env)
    step = bare_step(copies)
    obs = copies.reset(list(range(copies.num_copies)))

    def work() -> int:
        nonlocal obs
        steps = 0
        for _ in range(config.actor.unroll_length):
            obs, real = step(algorithm.greedy(forward(obs)))
            steps += real
        return steps

    return work


def bare_step(copies: Copies) -> Callable[[Array], tuple[Array, int]]:
    """Return actions to observations with nothing kept, and how many copies really stepped instead of being reset."""
    vector = copies.vector
    spaces = Spaces.of(copies.config.id, vector.single_observation_space, vector.single_action_space)
    mode = autoreset_mode(vector, copies.config.id)
    resetting = 0

    def step(action: Array) -> tuple[Array, int]:
        nonlocal resetting
        obs, _, terminated, truncated, _ = vector.step(spaces.write(action))
        real = copies.num_copies - resetting
        ends = terminated | truncated
        ended = int(np.count_nonzero(ends))
        if mode is AutoresetMode.NEXT_STEP:
            resetting = ended
        elif mode is AutoresetMode.DISABLED and ended:
            obs, _ = vector.reset(options={"reset_mask": ends})
        return spaces.read(obs), real

    return step
