"""What several test files share."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from cluster.cores import share_cores
from cluster.ray_node import RayNode
from cluster.signals import STOPPING

share_cores(os.environ)  # before any test imports numpy, as in every run

# how long an example takes says how busy the machine is
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Put back what handled signals before: whoever was asked to stop ignores them while it ends."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def own_umask() -> Iterator[None]:
    """Put back with which permissions files are made."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def own_ray() -> Iterator[None]:
    """Start a Ray as closed as a run's own, for tests of what talks through it."""
    node = RayNode.prepare()
    os.environ.update(node.environment(os.environ))  # Ray reads it when it is imported, so it must not have been yet
    import ray

    from cluster.supervisor import start_ray

    start_ray(node.folder)
    yield
    ray.shutdown()
    node.remove()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let who needs a Ray in the tests' own process come before anybody imports Ray, and long tests before short."""
    items.sort(key=lambda item: ("own_ray" not in item.fixturenames, item.get_closest_marker("cluster") is None))
