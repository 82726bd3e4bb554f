"""Masks of possible actions, from the environment's info to the loss."""

from collections.abc import Callable
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from actors.copies import Copies, EnvConfig
from actors.envs import make_copies, measure_spec
from actors.evaluator import Evaluator, EvaluatorConfig
from actors.rollout import Rollout
from cluster.export import export_numpy
from cluster.roles import build_algorithm
from param_server.server import ParamServer
from starling.algorithms.a3c import A3c, A3cConfig
from starling.batches import batch_of
from starling.config import Layer
from starling.distributions import entropy, log_prob, mask_column, mask_in, mode, sample
from starling.errors import ConfigError, EnvError
from starling.metrics import Meter, no_clock
from starling.networks.arrays import first_params
from starling.networks.forward import build_forward
from starling.networks.nets import LearnerNets
from starling.types import Array, Place, Unroll
from tests.counting import Counting
from tests.gates import GATES, Gates, GatesVector, possible, possible_wheels
from tests.test_export import policy_of

HERE = "tests.test_masks"
SEEDS = [11, 22, 33]
CONFIG = EnvConfig(id="tests.gates:Gates", copies=3, action_mask="info")
CPU = torch.device("cpu")


def wheels() -> Gates:
    return Gates(wheels=True)


def walled() -> Gates:
    return Gates(walled=True)


def silent() -> Gates:
    return Gates(silent=True)


class Short(Gates):
    """Tells of five gates where there are four."""

    def _info(self, over: bool) -> dict[str, Any]:
        return {"action_mask": np.ones(5, np.bool_)}


def box() -> Gates:
    made = Gates()
    made.action_space = Box(-1.0, 1.0, (2,), np.float32)  # type: ignore[assignment]
    return made


def of_gymnasium(kind: Any, autoreset: AutoresetMode) -> Copies:
    return Copies(kind([Gates] * 3, copy=False, autoreset_mode=autoreset), CONFIG)


BACKENDS: dict[str, Callable[[], Copies]] = {
    "what actors use": lambda: make_copies(CONFIG),
    **{f"sync {m.name}": partial(of_gymnasium, SyncVectorEnv, m) for m in AutoresetMode},
    "async NEXT_STEP": partial(of_gymnasium, AsyncVectorEnv, AutoresetMode.NEXT_STEP),
    "vector NEXT_STEP": lambda: Copies(GatesVector(3, SEEDS, AutoresetMode.NEXT_STEP), CONFIG),
    "vector SAME_STEP": lambda: Copies(GatesVector(3, SEEDS, AutoresetMode.SAME_STEP), CONFIG),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mask_is_of_the_observations_that_are_acted_on_next(backend: str) -> None:
    copies, rng = BACKENDS[backend](), np.random.default_rng(0)
    obs, ends, resets = copies.reset(SEEDS).copy(), 0, 0

    for _ in range(60):
        mask = copies.mask
        assert mask is not None
        kept = mask.copy()
        logits = np.zeros((3, GATES), np.float32)
        step = copies.step(sample({"logits": logits, "mask": mask}, rng))  # the environment refuses a closed gate

        for e in np.flatnonzero(step.acted):
            assert kept[e].tolist() == possible(obs[e]).tolist()
        assert kept[~step.acted].all()
        assert np.array_equal(mask, kept)
        obs, ends, resets = step.obs.copy(), ends + len(step.ended), resets + np.count_nonzero(~step.acted)
    copies.close()

    assert ends > 20
    assert (resets > 10) == ("NEXT_STEP" in backend)


def test_without_the_setting_there_is_no_mask() -> None:
    copies = make_copies(EnvConfig(id="tests.gates:Gates", copies=3))

    copies.reset(SEEDS)

    assert copies.mask is None
    assert copies.spec.mask == 0
    assert mask_column(copies.spec) == {}


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ("walled", "gave an info['action_mask'] that forbids every action"),
        ("silent", "must give info['action_mask'] with 4 entries at every reset and step, .*; it gave none"),
    ],
)
def test_an_environment_that_breaks_its_word_is_named(env: str, sentence: str) -> None:
    with pytest.raises(EnvError, match=f"environment {HERE}:{env} {sentence}".replace("[", r"\[")):
        measure_spec(EnvConfig(id=f"{HERE}:{env}", action_mask="info"))


def test_a_mask_of_another_length_and_one_left_out_are_errors() -> None:
    class Careless(GatesVector):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = super().reset(**kwargs)
            return obs, info | {"_action_mask": np.array([True, False, True])}

    with pytest.raises(EnvError, match=r"with 4 entries .* it gave one of shape \(5,\)"):
        measure_spec(EnvConfig(id=f"{HERE}:Short", action_mask="info"))
    with pytest.raises(EnvError, match="it left one out"):
        Copies(Careless(3, SEEDS, AutoresetMode.NEXT_STEP), CONFIG).reset(SEEDS)


def test_a_box_has_no_mask_and_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env\.action_mask must be none where actions are a box"):
        make_copies(EnvConfig(id=f"{HERE}:box", copies=1, action_mask="info"))
    with pytest.raises(ConfigError, match=r"env\.action_mask must be one of .* got 'always'"):
        EnvConfig(id="x", action_mask="always")  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["cartpole", "cartpole-async-q"])
def test_who_would_take_impossible_actions_is_refused_before_it_begins(preset: str) -> None:
    from cluster.config import load
    from cluster.preflight import refuse_what_cannot_run

    config = load(preset, (), Layer("test", {"env": {"id": "tests.gates:Gates", "action_mask": "info"}}))

    with pytest.raises(ConfigError, match=r"env\.action_mask must be none with algorithm (dqn|async_q)"):
        refuse_what_cannot_run(config)


LOGITS = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32) * 3
MASK = np.array([[1, 1, 0, 0, 1], [0, 1, 1, 1, 1], [1, 0, 1, 0, 0]] * 2, np.bool_)
SEVERAL = {"logits_0": LOGITS[:, :2], "logits_1": LOGITS[:, 2:], "mask": MASK}


def only_possible(logits: Array, mask: Array) -> Array:
    """Return the log-probabilities of the actions that are possible, as if there were no others."""
    kept = logits[mask].astype(np.float64)
    return kept - np.log(np.exp(kept).sum())


def test_an_impossible_action_is_never_drawn_however_likely_it_was() -> None:
    logits = np.where(MASK, LOGITS, 50.0).astype(np.float32).repeat(10_000, 0)
    mask = MASK.repeat(10_000, 0)

    alone = sample({"logits": logits, "mask": mask}, np.random.default_rng(0))
    several = sample({"logits_0": logits[:, :2], "logits_1": logits[:, 2:], "mask": mask}, np.random.default_rng(0))

    assert mask[np.arange(60_000), alone].all()
    assert mask[np.arange(60_000), several[:, 0]].all()
    assert mask[np.arange(60_000), 2 + several[:, 1]].all()
    assert set(alone[10_000:20_000].tolist()) == {1, 2, 3, 4}
    best = mode({"logits": logits, "mask": mask})[::10_000]
    assert best.tolist() == [int(np.where(m, row, -np.inf).argmax()) for m, row in zip(MASK, LOGITS, strict=True)]


@pytest.mark.parametrize("tensors", [False, True])
def test_probabilities_and_entropy_are_those_of_the_possible_actions_alone(tensors: bool) -> None:
    for t, (logits, mask) in enumerate(zip(LOGITS, MASK, strict=True)):
        expected = only_possible(logits, mask)
        made = torch.tensor if tensors else np.array
        arrays: dict[str, Any] = {"logits": made(LOGITS), "mask": made(MASK)}
        for i, action in enumerate(np.flatnonzero(mask)):
            assert float(log_prob(arrays, made(np.full(6, action)))[t]) == pytest.approx(
                expected[i], rel=1e-5, abs=1e-6
            )
        assert float(entropy(arrays)[t]) == pytest.approx(-(np.exp(expected) * expected).sum(), rel=1e-4)


def test_several_actions_have_a_mask_each() -> None:
    action = np.stack([MASK[:, :2].argmax(1), MASK[:, 2:].argmax(1)], 1)
    parts = [{"logits": LOGITS[:, cut], "mask": MASK[:, cut]} for cut in (slice(0, 2), slice(2, 5))]

    np.testing.assert_allclose(
        log_prob(SEVERAL, action), sum(log_prob(part, action[:, i]) for i, part in enumerate(parts))
    )
    np.testing.assert_allclose(entropy(SEVERAL), sum(entropy(part) for part in parts))


@pytest.mark.parametrize("names", [["logits"], ["logits_0", "logits_1"]])
def test_gradients_are_finite_and_leave_impossible_actions_alone(names: list[str]) -> None:
    logits = torch.tensor(LOGITS * 100, requires_grad=True)
    sizes = [5] if len(names) == 1 else [2, 3]
    outputs = dict(zip(names, logits.split(sizes, -1), strict=True)) | {"mask": torch.tensor(MASK)}
    first = [part.int().argmax(-1) for part in torch.tensor(MASK).split(sizes, -1)]
    action = first[0] if len(names) == 1 else torch.stack(first, -1)

    (log_prob(outputs, action).sum() + entropy(outputs).sum()).backward()

    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[~torch.tensor(MASK)].any()


def test_a_mask_that_allows_all_changes_nothing() -> None:
    plain, all_ = {"logits": LOGITS}, {"logits": LOGITS, "mask": np.ones_like(MASK)}

    assert np.array_equal(entropy(plain), entropy(all_))
    assert np.array_equal(sample(plain, np.random.default_rng(0)), sample(all_, np.random.default_rng(0)))
    assert mask_in(plain) == {}


def played(env: str, length: int = 30) -> tuple[A3c, Copies, Unroll]:
    algorithm = A3c(A3cConfig(hidden=(8,), activation="relu"))
    config = EnvConfig(id=env, copies=3, action_mask="info")
    copies = make_copies(config)
    networks = algorithm.acting(copies.spec)
    forward = build_forward(networks, copies.spec)
    rollout = Rollout(copies, algorithm, forward, Place(0, 1, 3), np.random.SeedSequence(0))
    rollout.load(first_params(networks, copies.spec, np.random.default_rng(0)))
    return algorithm, copies, rollout.collect(length, 1, Meter(no_clock))


@pytest.mark.parametrize(("env", "open_"), [("tests.gates:Gates", possible), (f"{HERE}:wheels", possible_wheels)])
def test_the_mask_that_an_action_was_chosen_under_is_stored_with_it_and_put_back(
    env: str, open_: Callable[[Array], Array]
) -> None:
    algorithm, copies, unroll = played(env)
    nets = LearnerNets(algorithm.networks(copies.spec), {}, copies.spec, torch.Generator().manual_seed(0), CPU)

    losses = algorithm.losses(nets, batch_of([unroll], CPU), None)
    losses.groups["a3c"].backward(inputs=nets.parameters("policy", "value"))

    for t, e in np.ndindex(30, 3):
        assert unroll.columns["mask"][t, e].tolist() == open_(unroll.columns["obs"][t, e]).tolist()
    assert torch.isfinite(nets.gradient).all()
    assert losses.metrics["entropy"] < log(3)  # of six pairs at most two by two are possible, of four gates two


def test_the_evaluator_takes_the_likeliest_possible_action() -> None:
    algorithm, copies, _ = played("tests.gates:Gates", 1)
    networks = algorithm.acting(copies.spec)
    forward = build_forward(networks, copies.spec)
    config = EvaluatorConfig(episodes=9, copies=3)
    evaluator = Evaluator(config, copies, algorithm, forward, ParamServer(no_clock), no_clock)

    evaluation = evaluator.evaluate(1, first_params(networks, copies.spec, np.random.default_rng(0)))

    assert (evaluation.lengths >= 1).all()  # a closed gate would have been an error


def test_a_loaded_policy_and_its_export_are_asked_with_the_mask(tmp_path: Path) -> None:
    from cluster.config import load
    from cluster.policy_loader import Policy as Loaded

    env = {"id": f"{HERE}:wheels", "action_mask": "info"}
    config = load("cartpole-a3c", (), Layer("test", {"env": env, "algorithm": {"hidden": [8]}}))
    policy = policy_of(config)
    policy.params.buffer[...] *= 30.0
    obs = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    export_numpy(policy, tmp_path / "policy.npz")

    action = policy.act(obs, MASK)

    assert np.take_along_axis(MASK[:, :2], action[:, :1], 1).all()
    assert np.take_along_axis(MASK[:, 2:], action[:, 1:], 1).all()
    assert policy.act(obs[1], MASK[1]).tolist() == action[1].tolist()
    assert Loaded(str(tmp_path / "policy.npz")).act(obs, MASK).tolist() == action.tolist()
    assert build_algorithm(config).columns(policy.spec).keys() == {"mask"}
    with pytest.raises(ConfigError, match=r"mask must be given, as tests\.test_masks:wheels has actions"):
        policy.act(obs)
    with pytest.raises(ConfigError, match=r"mask must be of shape \(6, 5\), got \(5,\)"):
        policy.act(obs, MASK[0])


def test_environments_without_masks_play_as_before() -> None:
    copies = make_copies(EnvConfig(id="counting", copies=3), Counting)

    copies.reset(SEEDS)
    copies.step(np.zeros(3, np.int64))

    assert copies.mask is None
