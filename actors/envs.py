"""Environments by id, by import path or by callable, made as copies that an actor steps together."""

import difflib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import VectorEnv

from actors.copies import Copies, EnvConfig, in_a_line, require_finite, seed_numbers
from actors.plain import PlainCopies
from actors.pool import SeededPool
from actors.spaces import Spaces
from starling.distributions import some_action
from starling.errors import EnvError
from starling.spec import Spec

__all__ = ["EnvConfig", "Factory", "Measured", "make_copies", "measure", "measure_spec"]

Factory = Callable[..., Any]
Vector = VectorEnv[Any, Any, Any]
POOL = "envpool:"


class Measured(NamedTuple):
    """What an environment looks like, and the translation between its arrays and ours."""

    spec: Spec
    spaces: Spaces


def make_copies(config: EnvConfig, factory: Factory | None = None) -> Copies:
    """Make the copies of an actor; `factory` stands in for the id of an environment that only exists in Python."""
    return Copies(_make_vector(config, factory), config)


def measure_spec(config: EnvConfig, factory: Factory | None = None) -> Spec:
    """Make one copy, reset and step it, and say what it looks like; refuse what cannot be learned from."""
    return measure(config, factory).spec


def measure(config: EnvConfig, factory: Factory | None = None) -> Measured:
    """Return the same with what translates the environment's arrays, for data that was recorded elsewhere."""
    copies = make_copies(replace(config, copies=1), factory)
    try:
        require_finite(config.id, observation=copies.reset(seed_numbers(np.random.SeedSequence(0), 1)))
        step = copies.step(some_action(copies.spec, copies.mask))
        require_finite(config.id, observation=step.obs, reward=step.reward)
    finally:
        copies.close()
    return Measured(copies.spec, copies.spaces)


def _make_vector(config: EnvConfig, factory: Factory | None) -> Vector:
    try:
        if factory is None and config.id.startswith(POOL):
            return _pool(config)
        if factory is None and _is_factory(config.id):
            factory = _import_factory(config.id)
        if factory is not None:
            return _from_factory(config, factory)
        return _from_registry(config, _find_spec(config.id))
    except EnvError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvError(
            f"environment {config.id} needs what is not installed here; {_installation(str(error))}"
        ) from error
    except Exception as error:  # the environment's own code, or Gymnasium about its arguments
        raise EnvError(f"environment {config.id} could not be made: {in_a_line(error)}") from error


def _installation(complaint: str) -> str:
    """Return how to install what Gymnasium misses: one of its extras, or what it says itself."""
    extra = re.search(r"gymnasium\[[\w-]+\]", complaint)
    return f"pip install '{extra[0]}'" if extra else complaint


def _is_factory(id_: str) -> bool:
    """Tell `module:factory` from `package:id`: a factory is a name in Python that Gymnasium does not know."""
    _, colon, name = id_.partition(":")
    return bool(colon) and all(part.isidentifier() for part in name.split(".")) and name not in gymnasium.registry


def _import(module: str, id_: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # importing runs the user's code
        raise EnvError(
            f"environment {id_} needs the module {module}, which fails to import: {in_a_line(error)}"
        ) from error


def _import_factory(id_: str) -> Factory:
    module, _, name = id_.partition(":")
    found = _import(module, id_)
    for part in name.split("."):
        if not hasattr(found, part):
            raise EnvError(f"environment {id_} names {part}, which {module} does not have{_nearest(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise EnvError(f"environment {id_} must name a class or a function, got {type(found).__name__}")
    factory: Factory = found
    return factory


def _find_spec(id_: str) -> EnvSpec:
    package, _, name = id_.rpartition(":")
    if package:
        _import(package, id_)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        hint = _nearest(name, gymnasium.registry, "; an id that another package registers is package:id")
        raise EnvError(f"environment {id_} is not known to Gymnasium{hint}") from error


def _nearest(name: str, known: Any, otherwise: str = "") -> str:
    near = difflib.get_close_matches(name, [str(k) for k in known], 1, 0.5)
    return f"; the nearest name is {near[0]}" if near else otherwise


def _from_registry(config: EnvConfig, spec: EnvSpec) -> Vector:
    """Prefer the environment's own vector, which steps all copies at once."""
    own = spec.vector_entry_point is not None and not spec.additional_wrappers
    if config.vectorization == "vector_entry_point" and not own:
        raise EnvError(f"environment {config.id} has no vector of its own; set env.vectorization to auto or sync")
    if config.vectorization == "sync" or not own:
        limit = config.time_limit or None
        unguarded = replace(spec, order_enforce=False)  # PlainCopies are never stepped before they are reset
        return _sync(
            config,
            lambda: gymnasium.make(unguarded, max_episode_steps=limit, disable_env_checker=True, **config.kwargs),
        )
    entry = spec.vector_entry_point
    creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    kwargs: dict[str, Any] = {**config.kwargs, **_limit_argument(config, creator)}
    return gymnasium.make_vec(spec, num_envs=config.copies, vectorization_mode="vector_entry_point", **kwargs)


def _limit_argument(config: EnvConfig, creator: Factory) -> dict[str, Any]:
    if not config.time_limit:
        return {}
    names = inspect.signature(creator).parameters
    if "max_episode_steps" not in names and not any(p.kind is p.VAR_KEYWORD for p in names.values()):
        raise EnvError(
            f"environment {config.id} takes no max_episode_steps in its own vector; set env.time_limit to 0 and its "
            "own limit in env.kwargs, or env.vectorization to sync"
        )
    return {"max_episode_steps": config.time_limit}


def _from_factory(config: EnvConfig, factory: Factory) -> Vector:
    is_vector = isinstance(factory, type) and issubclass(factory, VectorEnv)
    if is_vector or config.vectorization == "vector_entry_point":
        vector = factory(num_envs=config.copies, **config.kwargs, **_limit_argument(config, factory))
        if not isinstance(vector, VectorEnv):
            raise EnvError(
                f"environment {config.id} must make a gymnasium.vector.VectorEnv, got {type(vector).__name__}"
            )
        return vector

    def one() -> gymnasium.Env[Any, Any]:
        env = factory(**config.kwargs)
        if not isinstance(env, gymnasium.Env):
            raise EnvError(f"environment {config.id} must make a gymnasium.Env, got {type(env).__name__}")
        return gymnasium.wrappers.TimeLimit(env, config.time_limit) if config.time_limit else env

    return _sync(config, one)


def _sync(config: EnvConfig, one: Callable[[], gymnasium.Env[Any, Any]]) -> Vector:
    vector = PlainCopies([one] * config.copies)
    if len({id(env.unwrapped) for env in vector.envs}) < config.copies:
        raise EnvError(f"environment {config.id} must be made anew by each call, but its factory returned one twice")
    return vector


def _pool(config: EnvConfig) -> Vector:
    if importlib.util.find_spec("envpool") is None:
        raise EnvError(f"environment {config.id} needs EnvPool, which is not installed here; pip install envpool")
    envpool = _import("envpool", config.id)
    task = config.id.removeprefix(POOL)
    if task not in envpool.list_all_envs():
        raise EnvError(f"environment {config.id} is not known to EnvPool{_nearest(task, envpool.list_all_envs())}")
    limit = {"max_episode_steps": config.time_limit} if config.time_limit else {}
    return SeededPool(
        lambda seeds: envpool.make_gymnasium(task, num_envs=len(seeds), seed=seeds, **config.kwargs, **limit),
        config.copies,
    )
