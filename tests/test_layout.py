"""Who may import whom: the arrows of docs/architecture.md, and that numpy-only processes stay without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROLES = {"actors", "learner", "replay_server", "param_server"}
PACKAGES = {"starling", "cluster", *ROLES}
WITHOUT_TORCH = ROLES - {"learner"}
EXCEPTIONS = {("starling/__init__.py", "cluster")}  # re-exports the Python API, lazily


def forbidden(package: str) -> set[str]:
    """Return what a package must not import."""
    if package == "cluster":
        return set()
    others = PACKAGES - {package, "starling"}
    return others | {"ray"} | ({"torch"} if package in WITHOUT_TORCH else set())


def imported(source: str) -> Iterator[str]:
    """Yield the top-level package of every import, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def violations(sources: Mapping[str, str]) -> list[str]:
    """Return `path imports package` for every arrow that must not be."""
    return [
        f"{path} imports {name}"
        for path, source in sources.items()
        for name in imported(source)
        if name in forbidden(path.split("/")[0]) and (path, name) not in EXCEPTIONS
    ]


def test_imports_follow_the_arrows() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]

    assert violations({path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}) == []


def test_an_import_against_the_arrows_is_found_wherever_it_stands() -> None:
    made_up = {
        "starling/types.py": "from learner.worker import Learner",
        "actors/worker.py": "import starling.types\nimport replay_server.shard as shard",
        "learner/worker.py": "import torch\ndef late():\n    import ray",
        "replay_server/shard.py": "if True:\n    from torch import nn",
        "cluster/launch.py": "import ray, torch, actors, learner, starling",
        "starling/__init__.py": "def __getattr__(name):\n    import cluster.api",
        "param_server/server.py": "from . import slices\nimport rayon",
    }

    assert violations(made_up) == [
        "starling/types.py imports learner",
        "actors/worker.py imports replay_server",
        "learner/worker.py imports ray",
        "replay_server/shard.py imports torch",
    ]


def test_actors_and_servers_start_without_torch() -> None:
    script = (
        "import importlib, pkgutil, sys\n"
        f"for package in map(importlib.import_module, {sorted(WITHOUT_TORCH)}):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_collecting_the_tests_imports_no_ray() -> None:
    modules = [f"tests.{path.stem}" for path in sorted((ROOT / "tests").glob("test_*.py"))]
    script = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; sys.exit('ray' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_all_packages_come_from_one_directory() -> None:
    found = {package: find_spec(package) for package in PACKAGES}

    assert {Path(spec.origin).parents[1] for spec in found.values() if spec and spec.origin} == {ROOT}
    assert all(found.values())
