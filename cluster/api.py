"""Starling in Python: a run's policy, ready to act. Re-exported by the package `starling`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.envs import make_copies
from actors.spaces import Spaces
from cluster.checkpoints import Which
from cluster.config import Config, load
from cluster.roles import build_algorithm
from cluster.run_folder import find_run, load_params
from starling.networks.description import Network
from starling.networks.forward import build_forward
from starling.params import Params
from starling.spec import Spec
from starling.types import Array


class Policy:
    """A checkpoint's networks, acting greedily on observations as the environment gives them."""

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

    def act(self, obs: Any) -> Array:
        """Return the action for one observation, or for each of `[E, ...]`, as the environment takes it."""
        observed = self._spaces.read(obs)
        single = observed.shape == self.spec.obs.shape
        outputs = self.forward(observed[None] if single else observed)
        action = self._spaces.write(self._algorithm.greedy(outputs))
        taken: Array = action[0] if single else action
        return taken

    @property
    def offset(self) -> Array | None:
        """The smallest values of integer observations that do not count from 0."""
        return self._spaces.obs.offset

    @property
    def first_action(self) -> int:
        """The environment's number for action 0."""
        return int(getattr(self._spaces.action, "start", 0))


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
