"""The shared vocabulary: types, maths, networks and algorithms. No process, no Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.api import load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    """Return the Python API's parts when they are asked for: they stand in `cluster`, which knows every role."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import cluster.api

    return getattr(cluster.api, name)
