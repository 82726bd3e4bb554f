"""The numpy and torch forward passes, and what the heads promise."""

import numpy as np
import pytest
import torch

from starling.networks import Dueling, Linear, Mlp, NatureCnn, Network
from starling.networks.description import num_params
from starling.networks.forward import build_forward
from starling.networks.modules import build_modules
from starling.networks.numpy_forward import NumpyForward
from starling.networks.torch_forward import TorchForward
from starling.params import Params
from starling.spec import ArraySpec, Spec
from starling.types import Array

VECTOR = Spec(env="vector", obs=ArraySpec((4,), "float32"), action=ArraySpec((), "int64"), num_actions=3)
DIGITS = Spec(env="digits", obs=ArraySpec((2,), "int64"), action=ArraySpec((), "int64"), classes=(3, 5), num_actions=3)
BYTES = Spec(env="bytes", obs=ArraySpec((2, 3), "uint8"), action=ArraySpec((), "int64"), num_actions=3)
FRAMES = Spec(env="frames", obs=ArraySpec((4, 84, 84), "uint8"), action=ArraySpec((), "int64"), num_actions=3)


def observations(spec: Spec, count: int) -> Array:
    rng = np.random.default_rng(1)
    if spec.classes:
        return rng.integers(spec.classes, size=(count, len(spec.classes)))
    if spec.obs.dtype == "uint8":
        return rng.integers(256, size=(count, *spec.obs.shape), dtype=np.uint8)
    return rng.normal(size=(count, *spec.obs.shape)).astype(np.float32)


def params_of(networks: dict[str, Network], spec: Spec) -> Params:
    modules = build_modules(networks, spec, torch.Generator().manual_seed(3))
    return Params.of({f"{n}.{p}": t.detach().numpy() for n, m in modules.items() for p, t in m.named_parameters()})


@pytest.mark.parametrize("spec", [VECTOR, DIGITS, BYTES], ids=lambda spec: spec.env)
@pytest.mark.parametrize("torso", [Mlp(hidden=(16, 8)), Mlp(hidden=(16,), activation="tanh"), Mlp(hidden=())])
def test_numpy_forward_equals_torch(spec: Spec, torso: Mlp) -> None:
    heads = {"q": Dueling(actions=3), "policy": Linear(outputs=3), "table": Linear(outputs=2, bias=False)}
    networks = {"both": Network(torso=torso, heads=heads)}
    params, obs = params_of(networks, spec), observations(spec, 6)
    by_numpy, by_torch = NumpyForward(networks, spec), TorchForward(networks, spec)
    by_numpy.load(params)
    by_torch.load(params)

    actual, expected = by_numpy(obs), by_torch(obs)

    assert actual.keys() == expected.keys() == heads.keys()
    for name in heads:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5)


def test_actors_get_numpy_for_mlps_and_torch_for_frames() -> None:
    mlp = {"q": Network(torso=Mlp(), heads={"q": Linear(outputs=3)})}
    cnn = {"q": Network(torso=NatureCnn(), heads={"q": Linear(outputs=3)})}

    assert isinstance(build_forward(mlp, VECTOR), NumpyForward)
    forward = build_forward(cnn, FRAMES)
    forward.load(params_of(cnn, FRAMES))

    assert forward(observations(FRAMES, 2))["q"].shape == (2, 3)


def test_frames_keep_their_leading_axes() -> None:
    networks = {"q": Network(torso=NatureCnn(features=16), heads={"q": Linear(outputs=3)})}
    module = build_modules(networks, FRAMES, torch.Generator().manual_seed(0))["q"]
    frames = torch.tensor(observations(FRAMES, 6))

    folded = module(frames.reshape(2, 3, 4, 84, 84))["q"]

    torch.testing.assert_close(folded.reshape(6, 3), module(frames)["q"])


def test_dueling_q_is_identified_by_the_mean() -> None:
    networks = {"q": Network(torso=Mlp(hidden=(8,)), heads={"q": Dueling(actions=3)})}
    params, obs = params_of(networks, VECTOR), observations(VECTOR, 5)
    forward = NumpyForward(networks, VECTOR)
    forward.load(params)
    before = forward(obs)["q"]

    shifted = params.copy()
    shifted.arrays()["q.heads.q.streams.bias"][1:] += 7.0  # the same for every action: must not matter
    forward.load(shifted)

    np.testing.assert_allclose(forward(obs)["q"], before, rtol=1e-4, atol=1e-5)
    arrays = params.arrays()
    hidden = np.maximum(obs @ arrays["q.torso.layers.0.weight"].T + arrays["q.torso.layers.0.bias"], 0)
    state_value = hidden @ arrays["q.heads.q.streams.weight"][0] + arrays["q.heads.q.streams.bias"][0]
    np.testing.assert_allclose(before.mean(1), state_value, rtol=1e-4, atol=1e-5)


def test_the_same_generator_gives_the_same_weights() -> None:
    networks = {"q": Network(torso=Mlp(), heads={"q": Dueling(actions=3)})}

    first, second = params_of(networks, VECTOR), params_of(networks, VECTOR)

    assert first.buffer.tobytes() == second.buffer.tobytes()
    assert first.buffer.std() > 0


@pytest.mark.parametrize(
    ("spec", "torso"),
    [(VECTOR, Mlp(hidden=(16, 8))), (DIGITS, Mlp(hidden=())), (FRAMES, NatureCnn(features=64))],
    ids=["vector", "table", "frames"],
)
def test_the_parameters_of_a_network_are_counted_without_building_it(spec: Spec, torso: Mlp | NatureCnn) -> None:
    heads = {"q": Dueling(actions=3), "policy": Linear(outputs=3), "table": Linear(outputs=2, bias=False)}
    network = Network(torso=torso, heads=heads)

    assert num_params(network, spec) == params_of({"n": network}, spec).layout.size
