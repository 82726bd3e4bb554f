"""The parameter server: newest version only, and never backwards."""

import numpy as np

from param_server.server import ParamServer
from starling.metrics import no_clock
from starling.params import Layout, Params


def params(value: float) -> Params:
    return Params(Layout((("a", (2,)), ("b", ()))), np.full(3, value, np.float32))


def test_nothing_is_fetched_before_the_first_publication() -> None:
    assert ParamServer(no_clock).fetch(newer_than=0) is None


def test_only_a_newer_version_is_fetched() -> None:
    server = ParamServer(no_clock)
    server.publish(3, params(3.0))

    assert server.fetch(newer_than=3) is None
    fetched = server.fetch(newer_than=2)

    assert fetched is not None
    assert fetched[0] == 3
    assert fetched[1].arrays()["a"].tolist() == [3.0, 3.0]


def test_an_older_publication_is_refused_and_counted() -> None:
    server = ParamServer(no_clock)
    server.publish(5, params(5.0))

    server.publish(5, params(0.0))
    server.publish(4, params(0.0))

    fetched = server.fetch(newer_than=0)
    assert fetched is not None
    assert fetched[0] == 5
    assert fetched[1].buffer[0] == 5.0
    assert server.stats()["counts"]["refused"] == 2


def test_arrays_are_views_into_the_buffer() -> None:
    packed = Params.of({"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32)})

    packed.arrays()["a"][0, 1] = 9.0

    assert packed.buffer.tolist() == [1.0, 9.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert packed.layout.head(1).size == 4


def test_a_learner_that_was_replaced_publishes_no_more() -> None:
    server = ParamServer(no_clock)
    server.publish(5, params(5.0), generation=1)

    server.publish(9, params(9.0), generation=0)

    fetched = server.fetch(newer_than=0)
    assert fetched is not None
    assert fetched[0] == 5
    assert server.stats()["counts"]["refused"] == 1
