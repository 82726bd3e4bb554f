"""Slices of the parameters behind Ray: the same as in one process, and their successors take over."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from param_server.config import SliceConfig
from param_server.local import LocalSlices, make_slices
from param_server.slices import ParamSlice, cut
from starling.gradients import Gradient, GradientSink, Versions
from starling.metrics import no_clock
from tests.clusters import LIMIT_S, until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_ray")]

SIZE, SLICES = 11, 2
CONFIG = SliceConfig(slices=SLICES, optimizer="adam")


def values() -> NDArray[np.float32]:
    return np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)


def slice_with(part: slice, begin_above: int) -> ParamSlice:
    made = ParamSlice(CONFIG, values()[part], no_clock)
    made.begin_above(begin_above)
    return made


def slice_peer(index: int, generation: int = 0, begin_above: int = -1) -> Any:
    import ray

    from cluster.handles import Peer
    from cluster.processes import SliceProcess

    build = partial(slice_with, cut(SIZE, SLICES)[index], begin_above)
    handle = ray.remote(SliceProcess).options(num_cpus=0.1, max_restarts=0).remote(build)
    return Peer(f"param_server[{index}]", handle, generation)


def slices_of(peers: Sequence[Any]) -> Any:
    from cluster.remote_slices import RemoteSlices

    return RemoteSlices(peers, time.monotonic)


def push(sink: GradientSink, versions: Versions, step: int) -> None:
    gradient = np.random.default_rng(step).normal(size=SIZE).astype(np.float32)
    norm = float(np.linalg.norm(gradient))
    sink.push(Gradient(worker=0, generation=0, step=step, versions=versions, values=gradient, norm=norm, env_steps=1))


def fetched(sink: GradientSink, newer_than: Versions) -> tuple[Versions, NDArray[np.float32]]:
    until(lambda: not sink.must_wait())
    fresh = sink.fetch(newer_than)
    assert fresh is not None
    return fresh


def end(peer: Any) -> None:
    """Kill its process, and wait until nobody hears from it: ray.kill returns while it may still answer."""
    import ray
    from ray.exceptions import RayActorError

    def is_gone() -> bool:
        try:
            ray.get(peer.handle.fetch.remote(0), timeout=LIMIT_S)
        except RayActorError:
            return True
        return False

    ray.kill(peer.handle)
    until(is_gone)


def test_gradients_through_ray_move_the_parameters_as_in_one_process() -> None:
    remote, local = slices_of([slice_peer(0), slice_peer(1)]), LocalSlices(make_slices(CONFIG, values(), no_clock))
    versions, _ = fetched(remote, ())

    for step in range(5):
        push(remote, versions, step)
        push(local, versions, step)
        assert remote.must_wait() in ("param_server[0] to answer", "param_server[1] to answer", "")
        versions, moved = fetched(remote, versions)

    expected = local.fetch(())
    assert expected is not None
    assert versions == expected[0] == (5, 5)
    np.testing.assert_array_equal(moved, expected[1])


def test_a_worker_waits_for_a_slice_that_died_and_takes_its_successors_values() -> None:
    peers = [slice_peer(0), slice_peer(1)]
    sink = slices_of(peers)
    versions, _ = fetched(sink, ())
    push(sink, versions, 0)
    versions, _ = fetched(sink, versions)

    end(peers[1])
    push(sink, versions, 1)
    until(lambda: "param_server[1], down for" in sink.must_wait())
    sink.lines[1].connect(slice_peer(1, generation=1, begin_above=100))
    versions, after = fetched(sink, versions)

    assert versions == (2, 101)
    np.testing.assert_array_equal(after[cut(SIZE, SLICES)[1]], values()[cut(SIZE, SLICES)[1]])
    push(sink, versions, 2)
    assert fetched(sink, versions)[0] == (3, 102)


def test_values_of_a_slice_that_died_are_not_given_with_later_ones_of_the_others() -> None:
    from cluster.remote_slices import RemoteValues

    now = [0.0]
    peers = [slice_peer(0), slice_peer(1, begin_above=6)]
    reader, sink = RemoteValues(peers, lambda: now[0]), slices_of(peers)
    versions, _ = fetched(sink, ())

    def given_in_a_round() -> tuple[int, NDArray[np.float32]] | None:
        now[0] += 1.0  # so that it asks once
        given = reader.fetch(newer_than=0)
        deadline = time.monotonic() + LIMIT_S
        while given is None and any(map(len, reader.lines)):
            assert time.monotonic() < deadline
            given = reader.fetch(newer_than=0)
        return given

    assert given_in_a_round() is None  # the second slice is ahead, and has answered with its values
    end(peers[1])
    push(sink, versions, 0)
    until(lambda: "param_server[1], down for" in sink.must_wait())
    assert given_in_a_round() is None
    reader.lines[1].connect(slice_peer(1, generation=1, begin_above=100))
    given = given_in_a_round()

    assert given is not None
    assert given[0] == 1
    np.testing.assert_array_equal(given[1][cut(SIZE, SLICES)[1]], values()[cut(SIZE, SLICES)[1]])
