"""The numpy and torch forward passes, and what the heads promise."""

import numpy as np
import pytest
import torch

from starling.errors import ConfigError
from starling.networks import Dueling, Linear, Lone, Lstm, Mlp, NatureCnn, Network, state_specs
from starling.networks.arrays import first_params, layout_of, num_params
from starling.networks.description import SMALLEST
from starling.networks.design import torso_for
from starling.networks.forward import Recall, build_forward
from starling.networks.modules import build_modules, tanh
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


def spec_of_frames(*shape: int) -> Spec:
    return Spec(env="small:Frames", obs=ArraySpec(shape, "uint8"), action=ArraySpec((), "int64"), num_actions=3)


@pytest.mark.parametrize("shape", [(3, 35, 84), (1, 8, 8), (84, 84, 3)])
def test_frames_that_no_convolution_fits_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"frames must be \[channels, height, width\] with at least 36 .* small:Frames"
    ):
        torso_for(spec_of_frames(*shape), (64,), "relu")


def test_the_smallest_frames_still_go_through() -> None:
    spec = spec_of_frames(1, SMALLEST, SMALLEST)
    networks = {"q": Network(torso=torso_for(spec, (64,), "relu"), heads={"q": Linear(outputs=3)})}

    forward = TorchForward(networks, spec)

    assert forward(observations(spec, 2))["q"].shape == (2, 3)


def test_actors_get_numpy_for_mlps_and_torch_for_frames() -> None:
    mlp = {"q": Network(torso=Mlp(), heads={"q": Linear(outputs=3)})}
    cnn = {"q": Network(torso=NatureCnn(), heads={"q": Linear(outputs=3)})}

    assert isinstance(build_forward(mlp, VECTOR), NumpyForward)
    forward = build_forward(cnn, FRAMES)
    forward.load(params_of(cnn, FRAMES))

    assert forward(observations(FRAMES, 2))["q"].shape == (2, 3)


@pytest.mark.parametrize("memory", [None, Lstm(size=4)])
def test_frames_of_which_there_are_none_give_no_outputs(memory: Lstm | None) -> None:
    networks = {"q": Network(torso=NatureCnn(features=16), heads={"q": Linear(outputs=3)}, memory=memory)}
    module = build_modules(networks, FRAMES)["q"]
    none = torch.tensor(observations(FRAMES, 0))

    # as the last observations are where no episode ended in a batch
    outputs = module(none[None], torch.zeros(0, 2, 4))[0] if memory else module(none)

    assert outputs["q"].shape[-2:] == (0, 3)


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


def test_tanh_and_its_first_two_gradients_are_torchs_own() -> None:
    x = torch.tensor([[-30.0, -2.0, -1e-4], [0.0, 0.7, 12.0]], dtype=torch.float64, requires_grad=True)

    (slope,) = torch.autograd.grad(tanh(x).square().sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)

    y = x.detach().tanh()
    torch.testing.assert_close(tanh(x), y)
    torch.testing.assert_close(slope, 2 * y * (1 - y**2))
    torch.testing.assert_close(bend, 2 * (1 - y**2) * (1 - 3 * y**2))


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
def test_the_arrays_of_a_network_are_known_without_building_it(spec: Spec, torso: Mlp | NatureCnn) -> None:
    heads = {
        "q": Dueling(actions=3),
        "policy": Linear(outputs=3),
        "table": Linear(outputs=2, bias=False),
        "lone": Lone(outputs=2),
    }
    network = Network(torso=torso, heads=heads)
    remembers = Network(torso=torso, heads=heads, memory=Lstm(size=6))

    assert num_params(network, spec) == params_of({"n": network}, spec).layout.size
    assert num_params(remembers, spec) == params_of({"n": remembers}, spec).layout.size
    both = {"a": network, "b": remembers}
    assert layout_of(both, spec) == params_of(both, spec).layout


HEADS = {"q": Dueling(actions=3), "mean": Linear(outputs=2, scale=0.01), "log_std": Lone(outputs=2, initial=-0.5)}
REMEMBERING = {
    "policy": Network(torso=Mlp(hidden=(8,)), heads=HEADS, memory=Lstm(size=5)),
    "value": Network(torso=Mlp(hidden=()), heads={"value": Linear(outputs=1)}, memory=Lstm(size=3)),
    "plain": Network(torso=Mlp(hidden=(4,)), heads={"reward": Linear(outputs=1)}),
}


def random_state(copies: int) -> dict[str, Array]:
    rng = np.random.default_rng(2)
    return {
        name: rng.normal(size=(copies, *spec.shape)).astype(np.float32)
        for name, spec in state_specs(REMEMBERING).items()
    }


@pytest.mark.parametrize("spec", [VECTOR, DIGITS, BYTES], ids=lambda spec: spec.env)
def test_numpy_remembers_as_torch_does(spec: Spec) -> None:
    params = params_of(REMEMBERING, spec)
    by_numpy, by_torch = NumpyForward(REMEMBERING, spec), TorchForward(REMEMBERING, spec)
    by_numpy.load(params)
    by_torch.load(params)
    actual_state = expected_state = random_state(6)

    for obs in observations(spec, 24).reshape(4, 6, *spec.obs.shape):
        actual, actual_state = by_numpy.recall(obs, actual_state)
        expected, expected_state = by_torch.recall(obs, expected_state)

        assert actual.keys() == expected.keys() == HEADS.keys() | {"value", "reward"}
        for name in actual:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5)
        for name in ("policy", "value"):
            np.testing.assert_allclose(actual_state[name], expected_state[name], rtol=1e-5, atol=1e-5)


def test_time_at_once_equals_step_by_step_with_resets() -> None:
    module = build_modules(REMEMBERING, VECTOR, torch.Generator().manual_seed(3))["policy"]
    obs = torch.tensor(observations(VECTOR, 20)).reshape(5, 4, 4)
    first = torch.tensor(np.random.default_rng(0).random((5, 4)) < 0.3)
    state = torch.tensor(random_state(4)["policy"])

    outputs, states = module(obs, state, first)

    for t in range(5):
        state = torch.where(first[t][:, None, None], 0.0, state)
        expected, after = module(obs[t : t + 1], state)
        state = after[0]
        torch.testing.assert_close(states[t], state, rtol=1e-6, atol=1e-6)
        for name in HEADS:
            torch.testing.assert_close(outputs[name][t], expected[name][0], rtol=1e-6, atol=1e-6)
    assert first[1:].any(0).sum() == 3


def test_the_memory_is_torchs_own_lstm() -> None:
    module = build_modules(REMEMBERING, VECTOR, torch.Generator().manual_seed(3))["policy"]
    memory, features = module.memory, torch.randn(7, 2, 8, generator=torch.Generator().manual_seed(0))
    reference = torch.nn.LSTM(8, 5)
    with torch.no_grad():
        for name, value in {
            "weight_ih_l0": memory.inputs.weight,
            "weight_hh_l0": memory.recurrent.weight,
            "bias_ih_l0": memory.inputs.bias,
            "bias_hh_l0": torch.zeros(20),
        }.items():
            getattr(reference, name).copy_(value)

    states = memory(features, torch.zeros(2, 2, 5), None)

    said, (_, cell) = reference(features)
    torch.testing.assert_close(states[:, :, 0], said)
    torch.testing.assert_close(states[-1, :, 1], cell[0])


def test_copies_forget_when_an_episode_begins_and_states_handed_out_stay_as_they_were() -> None:
    forward = build_forward(REMEMBERING, VECTOR)
    forward.load(params_of(REMEMBERING, VECTOR))
    recall, obs = Recall(forward, REMEMBERING, 3), observations(VECTOR, 3)
    fresh = recall(obs)["q"]
    kept = recall.state["policy"]
    before = kept.copy()

    recall.forget(np.array([True, False, True]))
    again = recall(obs)["q"]

    np.testing.assert_array_equal(again[[0, 2]], fresh[[0, 2]])
    assert not np.allclose(again[1], fresh[1])
    np.testing.assert_array_equal(kept, before)


def test_a_lone_head_is_the_same_everywhere_and_learns() -> None:
    module = build_modules(REMEMBERING, VECTOR, torch.Generator().manual_seed(3))["policy"]
    obs = torch.tensor(observations(VECTOR, 6)).reshape(2, 3, 4)

    outputs, _ = module(obs, torch.zeros(3, 2, 5))

    assert outputs["log_std"].shape == (2, 3, 2)
    assert (outputs["log_std"] == -0.5).all()
    outputs["log_std"].sum().backward()
    assert module.heads["log_std"].values.grad.tolist() == [6.0, 6.0]


def test_a_heads_scale_makes_its_first_weights_small_and_changes_no_others() -> None:
    def weights(scale: float) -> dict[str, Array]:
        heads = {"mean": Linear(outputs=2, scale=scale), "value": Linear(outputs=1)}
        return params_of({"policy": Network(torso=Mlp(), heads=heads)}, VECTOR).arrays()

    large, small = weights(1.0), weights(0.01)

    for name in large:
        factor = 0.01 if name.startswith("policy.heads.mean") else 1.0
        np.testing.assert_allclose(small[name], large[name] * factor, rtol=1e-6)


@pytest.mark.parametrize("torso", [Mlp(hidden=(16, 8)), NatureCnn(features=64)], ids=["mlp", "cnn"])
def test_first_values_drawn_by_numpy_are_like_those_of_torch(torso: Mlp | NatureCnn) -> None:
    heads = {"mean": Linear(outputs=40, scale=0.1), "q": Dueling(actions=5), "log_std": Lone(outputs=3, initial=-0.5)}
    networks = {"policy": Network(torso=torso, heads=heads, memory=Lstm(size=12))}
    spec = FRAMES if isinstance(torso, NatureCnn) else VECTOR

    drawn, expected = first_params(networks, spec, np.random.default_rng(0)), params_of(networks, spec)

    assert drawn.layout == expected.layout
    for name, array in expected.arrays().items():
        spread = 0.25 * abs(array).max() if array.size > 20 else 0.3
        assert abs(abs(drawn.arrays()[name]).max() - abs(array).max()) <= spread, name
        assert (drawn.arrays()[name].std() > 0.0) == (array.std() > 0.0), name
