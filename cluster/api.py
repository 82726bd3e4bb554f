"""Starling in Python: a run's policy, ready to act. Re-exported by the package `starling`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from actors.envs import make_copies
from actors.spaces import Spaces
from cluster.checkpoints import Which
from cluster.config import Config, load
from cluster.roles import build_algorithm
from cluster.run_folder import find_run, load_params
from starling.errors import check
from starling.networks.description import Network, state_specs
from starling.networks.forward import Recall, build_forward
from starling.params import Params
from starling.spec import Spec
from starling.types import Array, Outputs


class Policy:
    """A checkpoint's networks, acting greedily on observations as the environment gives them.

    One that remembers takes each call for the next step of the same copies, until it is told to `forget`.
    """

    def __init__(self, config: Config[Any], params: Params) -> None:
        copies = make_copies(replace(config.env, copies=1))
        vector = copies.vector
        self._spaces = Spaces.of(config.env.id, vector.single_observation_space, vector.single_action_space)
        copies.close()
        self._algorithm = build_algorithm(config)
        self.spec: Spec = copies.spec
        self.params = params
        self.networks: Mapping[str, Network] = self._algorithm.acting(self.spec)
        self.forward = build_forward(self.networks, self.spec)
        self.forward.load(params)
        self._recall: Recall | None = None

    def act(self, obs: Any, mask: Any = None) -> Array:
        """Return the action for one observation, or for each of `[E, ...]`, as the environment takes it.

        `mask` says for each which actions are possible, where the environment tells (`env.action_mask`).
        """
        observed = self._spaces.read(obs)
        single = observed.shape == self.spec.obs.shape
        outputs = self._outputs(observed[None] if single else observed)
        if self.spec.mask:
            outputs = {**outputs, "mask": self._mask(mask, (len(outputs[next(iter(outputs))]), self.spec.mask))}
        action = self._spaces.write(self._algorithm.greedy(outputs))
        taken: Array = action[0] if single else action
        return taken

    def forget(self, copies: Any = None) -> None:
        """Begin new episodes, in all copies or in those that `[E]` says; only a policy that remembers needs it."""
        if copies is None:
            self._recall = None
        elif self._recall is not None:
            self._recall.forget(np.asarray(copies, np.bool_))

    def _mask(self, mask: Any, shape: tuple[int, int]) -> Array:
        check(mask is not None, f"mask must be given, as {self.spec.env} has actions that are not always possible")
        possible = np.asarray(mask, np.bool_)
        check(possible.size == shape[0] * shape[1], f"mask must be of shape {shape}, got {possible.shape}")
        return possible.reshape(shape)

    def _outputs(self, observed: Array) -> Outputs:
        if not state_specs(self.networks):
            return self.forward(observed)
        if self._recall is None:
            self._recall = Recall(self.forward, self.networks, len(observed))
        known = len(next(iter(self._recall.state.values())))
        check(known == len(observed), f"obs must be of the same {known} copies until forget(), got {len(observed)}")
        return self._recall(observed)

    @property
    def offset(self) -> Array | None:
        """The smallest values of integer observations that do not count from 0."""
        return self._spaces.obs.offset

    @property
    def first_action(self) -> int | list[int]:
        """The environment's number for action 0, of each where several are taken at once."""
        first: list[int] = np.asarray(getattr(self._spaces.action, "start", 0)).reshape(-1).tolist()
        return first if self.spec.choices else first[0]

    @property
    def box(self) -> dict[str, Array]:
        """The bounds `low` and `high` of a continuous action; nothing for others."""
        space = self._spaces.action
        return {"low": space.low, "high": space.high} if isinstance(space, Box) else {}


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run as it was left: its settings, one checkpoint's policy, and what is known of that checkpoint."""

    path: Path
    config: Config[Any]
    policy: Policy
    manifest: Mapping[str, Any]


def load_run(run: str | Path, which: Which = "best", runs: str | Path = "runs") -> LoadedRun:
    """Load a run by name, by path, or the `latest`."""
    found = find_run(Path(runs), str(run))
    config = load(str(found.config))
    params, manifest = load_params(found, which)
    return LoadedRun(found.path, config, Policy(config, params), manifest)
