"""A run's policy for those who have no Starling: arrays with a loader of a page, or ONNX. Checked before it is kept."""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cluster.api import Policy
from starling.errors import CodecError, UsageError
from starling.networks.description import FURTHEST, Dueling, Lone, Mlp, Moments, Network
from starling.networks.numpy_forward import deviation_of, join_streams
from starling.spec import Spec
from starling.types import Array

CONVS = ((0, 4), (2, 2), (4, 1))  # of the Nature CNN: number in its sequence, stride
BEST_OF = ("q", "logits", "mean")
"""How heads begin that say what the greedy action is: the largest output of each, or the mean itself"""
TOLERANCE = 1e-4
NEEDED = ("onnx", "onnxscript")


def export_numpy(policy: Policy, output: Path) -> Path:
    """Write the arrays, and beside them the loader; return the loader's path."""
    loader, text = output.with_suffix(".py"), (resources.files("cluster") / "policy_loader.py").read_bytes()
    if loader.exists() and not (loader.is_file() and loader.read_bytes() == text):
        raise UsageError(f"output must leave {loader} to its loader, got {output}, beside which it is another file")
    content: dict[str, Any] = dict(arrays(policy))
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:  # savez would append another suffix to a name of the user's own
        np.savez(file, **content)
    loader.write_bytes(text)
    from cluster.policy_loader import Policy as Loaded

    require_equal(policy, Loaded(str(output)).outputs, output, loader)
    return loader


def arrays(policy: Policy) -> dict[str, Array]:
    """Return every parameter under its name, dueling streams joined, and `about`: what is done with them, as JSON."""
    by_name: dict[str, Array] = dict(policy.params.arrays())
    for moments in [name.removesuffix(".count") for name in by_name if name.endswith(".count")]:
        by_name[f"{moments}.deviation"] = deviation_of(by_name, moments)
        del by_name[f"{moments}.var"], by_name[f"{moments}.count"]
    heads = {}
    for name, network in policy.networks.items():
        for head, kind in network.heads.items():
            prefix = f"{name}.heads.{head}"
            if isinstance(kind, Dueling):
                for part in ("weight", "bias"):
                    by_name[f"{prefix}.{part}"] = join_streams(by_name.pop(f"{prefix}.streams.{part}").T).T
            if isinstance(kind, Lone | Moments):
                heads[head] = [["values", f"{prefix}.{'values' if isinstance(kind, Lone) else 'deviation'}"]]
            else:
                heads[head] = [*torso_steps(name, network), ["linear", prefix]]
    spec = policy.spec
    about = {
        "env": spec.env,
        "heads": heads,
        "best_of": best_of(policy.networks),
        "several": bool(spec.choices),
        "classes": list(spec.classes),
        "mask": spec.mask,
        "bytes": spec.obs.dtype == "uint8",
        "first_action": policy.first_action,
    }
    offset = {} if policy.offset is None else {"offset": policy.offset}
    return {**by_name, **offset, **policy.box, "about": np.array(json.dumps(about))}


def torso_steps(name: str, network: Network) -> list[list[Any]]:
    """Return what is done with an observation before a head sees it."""
    torso = network.torso
    if isinstance(torso, Mlp):
        layers = [f"{name}.torso.layers.{i}" for i in range(len(torso.hidden))]
        norm = [["norm", f"{name}.torso.norm", FURTHEST]] if torso.normalise else []
        return [*norm, *(step for layer in layers for step in (["linear", layer], [torso.activation, ""]))]
    convs = [step for i, stride in CONVS for step in (["conv", f"{name}.torso.convs.{i}", stride], ["relu", ""])]
    return [*convs, ["linear", f"{name}.torso.linear"], ["relu", ""]]


def best_of(networks: Mapping[str, Network]) -> list[str]:
    """Return the heads that say what the greedy action is: by their largest output, or by being its mean."""
    if any(network.memory for network in networks.values()):
        raise UsageError("export knows policies without a memory only; use starling.load_run, which remembers")
    heads = [head for network in networks.values() for head in network.heads if head.startswith(BEST_OF)]
    if not heads:
        raise UsageError(f"export knows policies with the heads {', '.join(BEST_OF)} only; use starling.load_run")
    return heads


def export_onnx(policy: Policy, output: Path) -> None:
    """Write a model from raw observations `[E, ...]` to every head's outputs."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"export --onnx needs {' and '.join(missing)}, not installed here; pip install {' '.join(NEEDED)}"
        )
    import onnx
    from onnx.reference import ReferenceEvaluator

    from cluster.onnx_module import write

    best_of(policy.networks)
    output.parent.mkdir(parents=True, exist_ok=True)
    names = write(policy, output)
    model = onnx.load(output)
    onnx.checker.check_model(model)
    evaluator = ReferenceEvaluator(model)

    def outputs(obs: Array) -> dict[str, Array]:
        return dict(zip(names, evaluator.run(None, {"obs": obs}), strict=True))

    require_equal(policy, outputs, output)


def require_equal(policy: Policy, outputs: Callable[[Array], Mapping[str, Array]], *files: Path) -> None:
    """Compare an export with the framework's own forward pass, and delete its files if they differ."""
    output = files[0]
    obs = some_observations(policy.spec, 8)
    expected = policy.forward(obs)
    raw = obs if policy.offset is None or output.suffix == ".onnx" else obs + policy.offset
    for name, actual in outputs(raw).items():
        if not np.allclose(actual, expected[name], rtol=TOLERANCE, atol=TOLERANCE):
            for file in files:
                file.unlink()
            raise CodecError(f"{output} gave other values for {name} than the run's own networks, and was deleted")


def some_observations(spec: Spec, count: int) -> Array:
    """Return observations of the right kind, always the same."""
    rng = np.random.default_rng(0)
    if spec.classes:
        digits = [rng.integers(n, size=count) for n in spec.classes]
        return np.stack(digits, 1).reshape(count, *spec.obs.shape).astype(spec.obs.dtype)
    if spec.obs.dtype == "uint8":
        return rng.integers(256, size=(count, *spec.obs.shape), dtype=np.uint8)
    return rng.normal(size=(count, *spec.obs.shape)).astype(spec.obs.dtype)
