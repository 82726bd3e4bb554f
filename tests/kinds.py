"""A small environment for each kind of action, and unrolls of it as an algorithm's own actor plays them."""

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from actors.central import CentralRollout
from actors.copies import Copies, EnvConfig
from actors.envs import make_copies
from actors.gathering import Gathering
from actors.inference import Inference, LocalInference
from actors.rollout import Rollout
from starling.batches import batch_of
from starling.metrics import Meter, no_clock
from starling.networks.forward import build_forward
from starling.networks.nets import LearnerNets
from starling.params import Params
from starling.types import Algorithm, Batch, Place

CPU = torch.device("cpu")
KINDS: dict[str, gymnasium.Space[Any]] = {
    "discrete": Discrete(4),
    "several": MultiDiscrete([2, 3]),
    "box": Box(-1.0, 1.0, (2,), np.float32),
    "masked": Discrete(4),
    "several masked": MultiDiscrete([2, 3]),
}


class Noise(gymnasium.Env[Any, Any]):
    """Shows and pays noise; its episodes terminate now and then, and are truncated after some steps.

    If its kind is masked, some actions are impossible: which ones is noise too.
    """

    def __init__(self, kind: str) -> None:
        self._masked = "masked" in kind
        self.observation_space = Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = KINDS[kind]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._see(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self._masked or self._mask[np.atleast_1d(action) + [0, 2][: np.size(action)]].all()
        self._steps += 1
        over = bool(self.np_random.random() < 0.1)
        return self._see(), float(self.np_random.normal()), over, self._steps == 7, self._info()

    def _info(self) -> dict[str, Any]:
        sizes = self.action_space.nvec if isinstance(self.action_space, MultiDiscrete) else [4]
        parts = [self.np_random.random(n) < 0.4 for n in sizes]
        for part in parts:
            part[self.np_random.integers(len(part))] = True
        self._mask = np.concatenate(parts)
        return {"action_mask": self._mask} if self._masked else {}

    def _see(self) -> Any:
        return self.np_random.normal(size=3).astype(np.float32)


def copies_of(kind: str, num: int = 6) -> Copies:
    mask: Literal["none", "info"] = "info" if "masked" in kind else "none"
    config = EnvConfig(id="noise", copies=num, vectorization="sync", action_mask=mask)
    return make_copies(config, lambda: Noise(kind))


def networks_of(algorithm: Algorithm, copies: Copies, decided: float = 300.0) -> LearnerNets:
    """Return networks whose policy has made up its mind: a new one finds all actions nearly alike."""
    spec = copies.spec
    nets = LearnerNets(algorithm.networks(spec), {}, spec, torch.Generator().manual_seed(0), CPU)
    for name, span, _ in nets.layout.spans():
        if name.startswith(("policy.heads.logits", "policy.heads.mean")):
            nets.flat[span] *= decided
    return nets


def play(algorithm: Algorithm, copies: Copies, nets: LearnerNets, length: int = 12, unrolls: int = 2) -> Batch:
    """Return the last of some unrolls, so that its episodes are under way, and what is remembered is not nothing."""
    rollout = Rollout(
        copies,
        algorithm,
        build_forward(algorithm.acting(copies.spec), copies.spec),
        Place(0, 1, copies.num_copies),
        np.random.SeedSequence(5),
    )
    rollout.load(acting_params(algorithm, nets, copies))
    played = [rollout.collect(length, 1, Meter(no_clock)) for _ in range(unrolls)]
    return batch_of(played[-1:], CPU)


def play_centrally(
    algorithm: Algorithm, groups: Sequence[Copies], nets: LearnerNets, length: int = 12, unrolls: int = 2
) -> Batch:
    """Return the same of an actor without networks, whose groups of copies take turns."""
    spec, num_copies = groups[0].spec, sum(copies.num_copies for copies in groups)
    params = acting_params(algorithm, nets, groups[0])
    forward = build_forward(algorithm.acting(spec), spec)
    rng = np.random.default_rng(5)
    role = Inference(
        "inference[0]", algorithm, spec, forward, Fixed(params), 1, num_copies, rng, no_clock, Gathering(0.0)
    )
    place, seed = Place(0, 1, num_copies), np.random.SeedSequence(5)
    rollout = CentralRollout(groups, algorithm, LocalInference(role), place, seed)
    played = [rollout.play(length, Meter(no_clock)) for _ in range(unrolls)]
    last = played[-1]
    assert not isinstance(last, str), last
    return batch_of([last], CPU)


def acting_params(algorithm: Algorithm, nets: LearnerNets, copies: Copies) -> Params:
    """Return what actors are given of the learner's networks."""
    names = tuple(f"{name}." for name in algorithm.acting(copies.spec))
    return nets.params(sum(name.startswith(names) for name, _ in nets.layout.entries))


class Fixed:
    """A ParamSource with one version, which a test may change."""

    def __init__(self, params: Params, version: int = 1) -> None:
        self.version, self.params = version, params

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        return (self.version, self.params) if self.version > newer_than else None
