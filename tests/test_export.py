"""A run's policy outside of Starling: the same actions by Python, by numpy alone, and by ONNX."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

import starling
from cluster.api import Policy, load_run
from cluster.checkpoints import Checkpoint
from cluster.cli import main
from cluster.config import Config, dump, load
from cluster.export import arrays, export_numpy, export_onnx, some_observations
from cluster.provenance import provenance
from cluster.roles import build_algorithm
from cluster.run_folder import RunFolder
from starling.config import Layer
from starling.errors import CodecError, ConfigError, UsageError
from starling.networks.modules import build_modules
from starling.params import Params
from starling.spec import Spec

HERE = "tests.test_export"


class Made(gymnasium.Env[Any, Any]):
    """An environment that is its spaces, and ends at once."""

    def __init__(self, obs: gymnasium.Space[Any], first_action: int = 0) -> None:
        self.observation_space = obs
        self.action_space = Discrete(3, start=first_action)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, True, False, {}


def frames() -> Made:
    return Made(Box(0, 255, (2, 36, 36), np.uint8))


def places() -> Made:
    return Made(Discrete(5, start=3), first_action=7)


def config_of(env: str, *, dueling: bool = True, activation: str = "relu") -> Config[Any]:
    algorithm = {"dueling": dueling, "activation": activation, "hidden": [16, 8]}
    return load("cartpole", (), Layer("test", {"env": {"id": env}, "algorithm": algorithm}))


def policy_of(config: Config[Any], spec: Spec | None = None) -> Policy:
    import torch

    from actors.envs import measure_spec

    spec = spec or measure_spec(config.env)
    modules = build_modules(build_algorithm(config).acting(spec), spec, torch.Generator().manual_seed(1))
    named = {f"{n}.{p}": t.detach().numpy() for n, m in modules.items() for p, t in m.named_parameters()}
    return Policy(config, Params.of(named))


def a_run(runs: Path, name: str = "run") -> Policy:
    policy = policy_of(config_of("CartPole-v1"))
    with RunFolder.create(
        runs, name, dump(config_of("CartPole-v1")), provenance(["test"], datetime.now(UTC))
    ) as folder:
        facts = {"version": 4, "updates": 30, "env_steps": 900}
        folder.checkpoints.save(Checkpoint(params=policy.params, facts=facts), best=True)
    return policy


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("env", ["CartPole-v1", f"{HERE}:places", f"{HERE}:frames"])
def test_the_loader_equals_the_framework(env: str, dueling: bool, tmp_path: Path) -> None:
    policy = policy_of(config_of(env, dueling=dueling, activation="tanh"))
    obs = some_observations(policy.spec, 50)
    if policy.offset is not None:
        obs = obs + policy.offset

    loader = export_numpy(policy, tmp_path / "policy.npz")

    script = "from policy import Policy; import numpy as np; np.save('a', Policy('policy.npz').act(np.load('o.npy')))"
    np.save(tmp_path / "o.npy", obs)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert np.array_equal(np.load(tmp_path / "a.npy"), policy.act(obs))
    assert len(loader.read_text().splitlines()) <= 57


def a3c_policy(env: str, **algorithm: Any) -> Policy:
    settings = {"hidden": [8], "activation": "tanh", **algorithm}
    return policy_of(load("cartpole-a3c", (), Layer("test", {"env": {"id": env}, "algorithm": settings})))


def wheels() -> Made:
    made = Made(Box(-1.0, 1.0, (3,), np.float32))
    made.action_space = MultiDiscrete([2, 3], start=[5, 0])
    return made


def pedals() -> Made:
    made = Made(Box(-1.0, 1.0, (3,), np.float32))
    made.action_space = Box(np.array([-3.0, 0.0, -np.inf]), np.array([1.0, np.inf, np.inf]), dtype=np.float64)
    return made


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("env", ["CartPole-v1", f"{HERE}:places", f"{HERE}:wheels", f"{HERE}:pedals"])
def test_the_loader_acts_as_the_likeliest_of_a_policy(env: str, shared: bool, tmp_path: Path) -> None:
    policy = a3c_policy(env, shared=shared)
    policy.params.buffer[...] *= 30.0  # far from where all actions are alike, and beyond the box
    obs = some_observations(policy.spec, 50)
    if policy.offset is not None:
        obs = obs + policy.offset

    export_numpy(policy, tmp_path / "policy.npz")

    from cluster.policy_loader import Policy as Loaded

    np.testing.assert_allclose(Loaded(str(tmp_path / "policy.npz")).act(obs), policy.act(obs), rtol=1e-5, atol=1e-5)


def test_a_policy_with_a_memory_is_not_exported_and_nothing_is_written(tmp_path: Path) -> None:
    policy = a3c_policy("CartPole-v1", memory=4)

    for export in (export_numpy, export_onnx):
        with pytest.raises(UsageError, match="export knows policies without a memory only"):
            export(policy, tmp_path / "new" / "policy.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_policy_with_a_memory_remembers_until_it_is_told_to_forget() -> None:
    policy, other = (a3c_policy(f"{HERE}:pedals", memory=4) for _ in range(2))
    obs = some_observations(policy.spec, 2)

    first, second = policy.act(obs), policy.act(obs)
    policy.forget(np.array([True, False]))
    third = policy.act(obs)
    policy.forget()

    np.testing.assert_array_equal(other.act(obs), first)
    assert not np.allclose(second, first)
    np.testing.assert_array_equal(third[0], first[0])
    assert not np.allclose(third[1], first[1])
    np.testing.assert_array_equal(policy.act(obs), first)
    with pytest.raises(ConfigError, match="obs must be of the same 2 copies until forget"):
        policy.act(obs[0])


def test_the_loader_needs_neither_torch_nor_starling(tmp_path: Path) -> None:
    export_numpy(policy_of(config_of("CartPole-v1")), tmp_path / "mine.npz")

    script = "import sys, mine; sys.exit(any(m in sys.modules for m in ('torch', 'starling', 'cluster', 'gymnasium')))"

    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0


def test_exported_arrays_need_no_pickle() -> None:
    content = arrays(policy_of(config_of("CartPole-v1")))

    assert all(array.dtype != object for array in content.values())


def test_an_export_that_differs_is_deleted(tmp_path: Path) -> None:
    policy = policy_of(config_of("CartPole-v1"))
    other = policy_of(config_of("CartPole-v1"))
    other.params.buffer[...] += 1.0
    policy.forward = other.forward

    with pytest.raises(CodecError, match="gave other values for q"):
        export_numpy(policy, tmp_path / "policy.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_ones_own_in_the_loaders_place_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path / "runs")
    (tmp_path / "train.py").write_text("print('mine')\n")

    code = main(["export", "run", "--numpy", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "train.npz")])

    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "train.py").read_text() == "print('mine')\n"
    assert not (tmp_path / "train.npz").exists()


def test_an_export_is_repeated_over_the_earlier_one(tmp_path: Path) -> None:
    policy = policy_of(config_of("CartPole-v1"))

    loaders = [export_numpy(policy, tmp_path / "policy.npz") for _ in range(2)]

    assert loaders == 2 * [tmp_path / "policy.py"]


@pytest.mark.parametrize("env", ["CartPole-v1", f"{HERE}:places", f"{HERE}:frames"])
def test_onnx_equals_torch_for_any_number_of_observations(env: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="pip install '.[onnx]'")
    from onnx.reference import ReferenceEvaluator

    policy, output = policy_of(config_of(env)), tmp_path / "policy.onnx"

    export_onnx(policy, output)

    obs = some_observations(policy.spec, 5)
    (q,) = ReferenceEvaluator(str(output)).run(None, {"obs": obs})
    np.testing.assert_allclose(q, policy.forward(obs)["q"], rtol=1e-4, atol=1e-4)


def test_a_loaded_run_acts_on_one_observation_or_many(tmp_path: Path) -> None:
    policy = a_run(tmp_path)
    obs = some_observations(policy.spec, 4)

    run = load_run("run", runs=tmp_path)

    many = run.policy.act(obs)
    assert many.tolist() == policy.forward(obs)["q"].argmax(1).tolist()
    assert [int(run.policy.act(one)) for one in obs] == many.tolist()
    assert (run.manifest["version"], run.config.env.id) == (4, "CartPole-v1")


def test_actions_and_observations_are_the_environments_own() -> None:
    policy = policy_of(config_of(f"{HERE}:places"))

    actions = policy.act(np.arange(3, 8))

    assert set(actions.tolist()) <= {7, 8, 9}


def test_the_package_offers_load_run_and_nothing_that_is_not_there() -> None:
    assert starling.load_run is load_run
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        starling.load  # noqa: B018


def test_importing_starling_imports_no_other_package() -> None:
    script = "import sys, starling; sys.exit('cluster' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_command_writes_where_it_is_told_or_into_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path)

    assert main(["export", "run", "--runs", str(tmp_path), "--numpy"]) == 0
    assert main(["export", "run", "--runs", str(tmp_path), "--numpy", "--output", str(tmp_path / "x/mine.npz")]) == 0

    assert {path.name for path in (tmp_path / "run").glob("policy.*")} == {"policy.npz", "policy.py"}
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"mine.npz", "mine.py"}
    assert "read by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "export must be given one of --numpy and --onnx, got neither"),
        (["--numpy", "--onnx"], "export must be given one of --numpy and --onnx, got both"),
        (["--numpy", "--output", "x.onnx"], "output must be a file ending in .npz, got x.onnx"),
    ],
)
def test_a_mistake_is_one_sentence(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", *flags]) == 2

    assert sentence in capsys.readouterr().err


def test_without_the_onnx_packages_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.export.NEEDED", ("no_such_package",))

    with pytest.raises(UsageError, match="needs no_such_package, not installed here; pip install no_such_package"):
        export_onnx(policy_of(config_of("CartPole-v1")), tmp_path / "policy.onnx")
