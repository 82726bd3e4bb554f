"""Running mean and variance in networks: what they are, who moves them, and how every forward pass reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from cluster.export import export_numpy, export_onnx
from learner.config import OptimizerConfig
from learner.optimizers import Optimizers
from starling.errors import ConfigError
from starling.networks import Linear, Lstm, Mlp, Moments, Network
from starling.networks.arrays import first_params, layout_of
from starling.networks.design import torso_for
from starling.networks.forward import build_forward
from starling.networks.nets import LearnerNets
from starling.networks.numpy_forward import NumpyForward
from starling.networks.torch_forward import TorchForward
from starling.spec import ArraySpec, Spec
from starling.types import Array, Group, Target
from tests.test_export import Made, config_of, policy_of

SPEC = Spec(env="vector", obs=ArraySpec((2, 2), "float32"), action=ArraySpec((), "int64"), num_actions=3)
HEADS = {"q": Linear(outputs=3), "scale": Moments(outputs=2)}
NORMALISED = Mlp(hidden=(8,), normalise=True)
ROWS = (np.random.default_rng(0).normal(size=(600, 2, 2)) * [[1.0, 30.0], [0.01, 5.0]]).astype(np.float32) + 40.0
SPLITS = {"at once": [600], "one by one": [1] * 600, "unevenly": [1, 299, 0, 7, 293]}


def nets_of(*, targets: dict[str, Target] | None = None, **changes: Any) -> LearnerNets:
    network = replace(Network(torso=NORMALISED, heads=HEADS), **changes)
    generator = torch.Generator().manual_seed(0)
    return LearnerNets({"one": network}, targets or {}, SPEC, generator, torch.device("cpu"))


def statistics(nets: LearnerNets, of: str = "torso.norm") -> dict[str, Array]:
    arrays = nets.params(len(nets.layout.entries)).arrays()
    return {part: arrays[f"one.{of}.{part}"] for part in ("mean", "var", "count")}


def observe(nets: LearnerNets, rows: Array, split: list[int]) -> None:
    for part in torch.split(torch.tensor(rows), split):
        nets.observe_inputs(part)


@pytest.mark.parametrize("split", SPLITS)
def test_moments_are_those_of_all_rows_however_they_came(split: str) -> None:
    nets = nets_of()

    observe(nets, ROWS, SPLITS[split])

    found, flat = statistics(nets), ROWS.reshape(600, 4).astype(np.float64)
    np.testing.assert_allclose(found["mean"], flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["var"], flat.var(0), rtol=1e-4)
    assert found["count"].tolist() == [600.0]


def test_an_observation_may_be_a_single_number_and_of_none_nothing_is_learned() -> None:
    spec = replace(SPEC, obs=ArraySpec((), "float32"))
    network = {"one": Network(torso=NORMALISED, heads=HEADS)}
    nets = LearnerNets(network, {}, spec, torch.Generator().manual_seed(0), torch.device("cpu"))

    nets.observe_inputs(torch.tensor([1.0, 3.0]))
    nets.observe_inputs(torch.zeros(0))

    assert {part: array.tolist() for part, array in statistics(nets).items()} == {
        "mean": [2.0],
        "var": [1.0],
        "count": [2.0],
    }


def test_a_head_observes_rows_of_its_own() -> None:
    nets, values = nets_of(), np.random.default_rng(1).normal(3.0, 2.0, (5, 7, 2)).astype(np.float32)

    nets.observe("one", "scale", torch.tensor(values[:2]))
    nets.observe("one", "scale", torch.tensor(values[2:]))

    deviation = nets.frozen("one", torch.tensor(ROWS[:6]).reshape(3, 2, 2, 2))["scale"]
    assert deviation.shape == (3, 2, 2)
    np.testing.assert_allclose(deviation[0, 0], values.reshape(-1, 2).std(0), rtol=1e-5)
    assert statistics(nets)["count"].tolist() == [0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_leave_the_moments_as_they_were(bad: float) -> None:
    """PPO learns from the parts of a batch that are finite, and everything of all batches passes through moments."""
    nets = nets_of()
    observe(nets, ROWS, SPLITS["at once"])
    nets.observe("one", "scale", torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    before = nets.flat.clone()
    rows = torch.from_numpy(ROWS[:5].copy())
    rows[2, 1, 0] = bad

    nets.observe_inputs(rows)
    nets.observe("one", "scale", torch.tensor([[0.0, bad]]))

    assert torch.equal(nets.flat, before)


def test_before_anything_was_observed_inputs_are_only_clipped() -> None:
    nets, plain = nets_of(), nets_of(torso=Mlp(hidden=(8,)))
    plain.load_some(nets.params(len(nets.layout.entries)).arrays())
    obs = torch.tensor([[[0.5, -3.0], [40.0, -11.0]]])

    outputs = nets.frozen("one", obs)

    torch.testing.assert_close(outputs["q"], plain.frozen("one", obs.clamp(-10.0, 10.0))["q"])
    assert outputs["scale"].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("hidden", [(8, 5), ()])
@pytest.mark.parametrize("memory", [None, Lstm(size=4)])
def test_numpy_normalises_as_torch_does(hidden: tuple[int, ...], memory: Lstm | None) -> None:
    nets = nets_of(torso=Mlp(hidden=hidden, normalise=True), memory=memory)
    nets.observe_inputs(torch.tensor(ROWS))
    nets.observe("one", "scale", torch.tensor([[1.0, 2.0], [5.0, 2.0]]))
    network = {"one": Network(torso=Mlp(hidden=hidden, normalise=True), heads=HEADS, memory=memory)}
    forwards = NumpyForward(network, SPEC), TorchForward(network, SPEC)
    state = {"one": np.ones((600, 2, 4), np.float32)} if memory else {}

    outputs = []
    for forward in forwards:
        forward.load(nets.params(len(nets.layout.entries)))
        outputs.append(forward.recall(ROWS, state))

    for name in HEADS:
        np.testing.assert_allclose(outputs[0][0][name], outputs[1][0][name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs[0][0]["scale"][0], [2.0, 1e-4], rtol=1e-5)


@pytest.mark.parametrize("hidden", [(8,), ()])
def test_what_is_further_than_ten_deviations_is_ten_away(hidden: tuple[int, ...]) -> None:
    network = {"one": Network(torso=Mlp(hidden=hidden, normalise=True), heads={"q": Linear(outputs=3)})}
    nets = nets_of(**vars_of(network["one"]))
    nets.observe_inputs(torch.tensor(ROWS))
    forward = build_forward(network, SPEC)
    forward.load(nets.params(len(nets.layout.entries)))
    mean, deviation = ROWS.mean(0), ROWS.std(0)

    near, at, beyond = (forward((mean + k * deviation)[None].astype(np.float32))["q"] for k in (9.0, 10.01, 1e6))

    np.testing.assert_array_equal(at, beyond)
    assert not np.allclose(near, at)


def vars_of(network: Network) -> dict[str, Any]:
    return {"torso": network.torso, "heads": network.heads}


def test_inputs_far_from_zero_keep_their_precision() -> None:
    network = {
        "one": Network(torso=Mlp(hidden=(8,), activation="tanh", normalise=True), heads={"q": Linear(outputs=3)})
    }
    nets = nets_of(**vars_of(network["one"]))
    rows = (1e4 + np.random.default_rng(0).integers(-3, 4, size=(500, 2, 2)) / 64.0).astype(np.float32)
    nets.observe_inputs(torch.tensor(rows))
    forward = build_forward(network, SPEC)
    forward.load(nets.params(len(nets.layout.entries)))

    said = forward(rows)["q"]

    arrays = {name: array.astype(np.float64) for name, array in nets.params(len(nets.layout.entries)).arrays().items()}
    flat = rows.reshape(500, 4).astype(np.float64)
    inputs = (flat - arrays["one.torso.norm.mean"]) / np.sqrt(arrays["one.torso.norm.var"] + 1e-8)
    hidden = np.tanh(inputs @ arrays["one.torso.layers.0.weight"].T + arrays["one.torso.layers.0.bias"])
    expected = hidden @ arrays["one.heads.q.weight"].T + arrays["one.heads.q.bias"]
    np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "rmsprop", "sgd"])
def test_no_optimizer_moves_moments_and_no_norm_counts_them(kind: Any) -> None:
    nets = nets_of()
    nets.observe_inputs(torch.tensor(ROWS))
    nets.observe("one", "scale", torch.tensor(ROWS[:, 0]))
    before = {**statistics(nets), "std": statistics(nets, "heads.scale")["var"]}
    weights = nets["one"].heads["q"].weight.detach().clone()
    optimizers = Optimizers(OptimizerConfig(kind=kind, clip_norm=1e-3), {"loss": Group(networks=("one",))}, nets)

    for updates in range(5):
        outputs = nets["one"](torch.tensor(ROWS[:50]))
        optimizers.begin(updates, 1.0)
        assert optimizers.step({"loss": (outputs["q"] * outputs["scale"][:, :1]).square().mean()})

    after = {**statistics(nets), "std": statistics(nets, "heads.scale")["var"]}
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name
    learned = [parameter.grad for parameter in nets.parameters("one")]
    assert len(learned) == 4
    torch.testing.assert_close(nets.gradient.norm(), torch.cat([g.flatten() for g in learned]).norm())
    assert not torch.equal(nets["one"].heads["q"].weight, weights)


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_a_target_has_the_moments_of_its_network_however_slowly_it_follows(tau: float) -> None:
    nets = nets_of(targets={"slow": Target(of="one", tau=tau)})
    nets.observe_inputs(torch.tensor(ROWS))

    nets.follow(1)

    online, target = nets["one"], nets["slow"]
    for part in ("mean", "var", "count"):
        assert torch.equal(getattr(target.torso.norm, part), getattr(online.torso.norm, part))


def test_a_state_and_published_parameters_bring_moments_back() -> None:
    nets = nets_of()
    nets.observe_inputs(torch.tensor(ROWS[:400]))
    state, params = nets.state(), nets.params(len(nets.layout.entries))

    restored, loaded = nets_of(), nets_of()
    restored.restore(state)
    loaded.load(params)

    for other in (restored, loaded):
        observe(other, ROWS[400:], [200])
    observe(nets, ROWS[400:], [200])
    for other in (restored, loaded):
        assert {k: v.tobytes() for k, v in statistics(other).items()} == {
            k: v.tobytes() for k, v in statistics(nets).items()
        }


@pytest.mark.parametrize("torso", [NORMALISED, Mlp(hidden=(), normalise=True)])
def test_the_arrays_and_their_first_values_are_known_without_building_the_network(torso: Mlp) -> None:
    nets = nets_of(torso=torso, memory=Lstm(size=3))
    network = {"one": Network(torso=torso, heads=HEADS, memory=Lstm(size=3))}

    drawn = first_params(network, SPEC, np.random.default_rng(0)).arrays()

    assert layout_of(network, SPEC) == nets.layout
    for of in ("torso.norm", "heads.scale"):
        for part, array in statistics(nets, of).items():
            assert np.array_equal(drawn[f"one.{of}.{part}"], array)


@pytest.mark.parametrize("shape", [(3, 40, 40), (4,)])
def test_integers_bytes_and_frames_are_not_normalised(shape: tuple[int, ...]) -> None:
    spec = replace(SPEC, obs=ArraySpec(shape, "uint8"))

    with pytest.raises(ConfigError, match=r"algorithm\.normalise_obs must be false for integers, bytes and frames"):
        torso_for(spec, (8,), "relu", normalise=True)
    with pytest.raises(ConfigError, match="vector has int64 of"):
        torso_for(replace(SPEC, obs=ArraySpec((), "int64"), classes=(3,)), (8,), "relu", normalise=True)
    assert torso_for(SPEC, (8,), "relu", normalise=True) == Mlp(hidden=(8,), normalise=True)


def squares() -> Made:
    return Made(Box(-np.inf, np.inf, (2, 2), np.float32))


@pytest.mark.parametrize("env", ["CartPole-v1", "tests.test_moments:squares"])
@pytest.mark.parametrize("form", ["numpy", "onnx"])
def test_an_export_normalises_too(form: str, env: str, tmp_path: Path) -> None:
    policy = policy_of(config_of(env))
    networks = {"one": Network(torso=NORMALISED, heads={"q": Linear(outputs=2), "scale": Moments(outputs=2)})}
    nets = LearnerNets(networks, {}, policy.spec, torch.Generator().manual_seed(0), torch.device("cpu"))
    nets.observe_inputs(torch.tensor(ROWS.reshape(600, *policy.spec.obs.shape) - 30.0))
    policy.networks, policy.params = networks, nets.params(len(nets.layout.entries))
    policy.forward = build_forward(networks, policy.spec)
    policy.forward.load(policy.params)

    # an export is compared with the networks, and refused if it differs
    if form == "numpy":
        export_numpy(policy, tmp_path / "policy.npz")
    else:
        pytest.importorskip("onnxscript", reason="pip install '.[onnx]'")
        export_onnx(policy, tmp_path / "policy.onnx")

    assert (tmp_path / "policy.npz").exists() == (form == "numpy")
    assert (tmp_path / "policy.onnx").exists() == (form == "onnx")
