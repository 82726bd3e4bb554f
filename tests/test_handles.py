"""Calls over a Ray handle: in order, bounded, and lost only as counted."""

import time
from typing import Any

import numpy as np
import pytest

from starling.errors import RoleError
from tests.clusters import LIMIT_S, until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_ray")]


class Echo:
    """Answers what it was asked, or dies of it."""

    def say(self, word: str) -> str:
        return word

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self) -> None:
        import os

        os._exit(1)

    def fill(self) -> None:
        from ray.exceptions import OutOfMemoryError

        raise OutOfMemoryError("Task was killed due to the node running low on memory.")

    def credit(self) -> int:
        return 1

    def fetch(self, newer_than: int) -> Any:
        return None

    def publish(self, version: int, params: Any, generation: int) -> None:
        self.published = version

    def newest(self) -> int:
        return self.published


def peer(generation: int = 0, role: str = "echo[0]") -> Any:
    import ray

    from cluster.handles import Peer

    handle = ray.remote(Echo).options(num_cpus=0.1, max_restarts=0).remote()
    return Peer(role, handle, generation)


def line(to: Any, limit_s: float = LIMIT_S) -> Any:
    from cluster.handles import Line

    return Line(to, time.monotonic, limit_s)


def test_answers_come_in_the_order_of_the_calls() -> None:
    calls, heard = line(peer()), []
    for word in "abc":
        calls.call("say", word)

    until(lambda: heard.extend(calls.answers()) or len(heard) == 3)

    assert heard == ["a", "b", "c"]
    assert len(calls) == 0


def test_each_call_to_a_role_that_dies_is_answered_by_lost_and_the_role_is_named() -> None:
    from cluster.handles import LOST

    calls, heard = line(peer(role="replay_server[1]")), []
    calls.call("die")
    calls.call("say", "too late")

    until(lambda: heard.extend(calls.answers()) or len(heard) == 2)
    calls.call("say", "nobody is there")

    assert [*heard, *calls.answers()] == [LOST] * 3
    assert calls.lost == 2  # sent and never answered
    assert calls.waits().startswith("replay_server[1], down for")


def test_the_answer_of_a_role_that_was_ended_for_want_of_memory_is_lost() -> None:
    from cluster.handles import LOST

    calls, heard = line(peer()), []
    calls.call("fill")
    until(lambda: heard.extend(calls.answers()) or bool(heard))

    assert heard == [LOST]


def test_a_successor_is_talked_to_once_it_is_connected() -> None:
    calls, heard = line(peer()), []
    calls.call("die")
    until(lambda: calls.answers() != [])

    calls.connect(peer(generation=1))
    assert calls.waits() == ""
    calls.call("say", "here")
    until(lambda: heard.extend(calls.answers()) or bool(heard))

    assert heard == ["here"]
    assert calls.generation == 1


def test_a_call_that_outlives_its_limit_is_an_error_that_names_the_role() -> None:
    calls = line(peer(role="param_server[0]"), limit_s=0.2)
    calls.call("sleep", 5.0)

    with pytest.raises(RoleError, match=r"param_server\[0\] has not answered for"):
        until(lambda: calls.answers() != [])


def test_the_answers_owed_by_a_dead_role_come_before_those_of_its_successor() -> None:
    from cluster.handles import LOST

    calls, heard = line(peer()), []
    calls.call("sleep", 60.0)

    calls.connect(peer(generation=1))  # before anything was known of the death
    calls.call("say", "here")
    until(lambda: heard.extend(calls.answers()) or len(heard) == 2)

    assert heard == [LOST, "here"]


def test_the_learners_newest_version_is_sent_again_to_a_server_that_was_recreated() -> None:
    import ray

    from cluster.handles import RemoteParamSink
    from starling.params import Params

    first, second = peer(), peer(generation=1)
    sink = RemoteParamSink(first, time.monotonic, 0)
    sink.publish(7, Params.of({"w": np.ones(3, np.float32)}))
    until(lambda: sink.flush() is None and len(sink.lines[0]) == 0)

    sink.lines[0].connect(second)
    sink.flush()
    until(lambda: sink.flush() is None and len(sink.lines[0]) == 0)

    assert ray.get(second.handle.newest.remote(), timeout=LIMIT_S) == 7


def test_a_request_to_a_shard_that_is_down_is_answered_with_none() -> None:
    from cluster.handles import RemoteReplay
    from starling.types import SampleRequest

    replay, come = RemoteReplay([peer()], time.monotonic, 0), []
    replay.lines[0].call("die")
    until(lambda: come.extend(replay.replies()) or bool(come))

    request = SampleRequest(counts=[4, 4], keys=np.empty(0, np.int64), priorities=np.empty(0), insert_limit=10)
    replay.request(0, request)

    assert come == [(0, None)]
    assert replay.replies() == [(0, None)]
    assert replay.replies() == []
