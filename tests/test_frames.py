"""Frames between supervisor and launcher: whatever is sent arrives, however the pipe cuts it."""

import os
import threading
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.frames import LENGTH, Inbox, Orders, receive_orders, send
from cluster.report import CheckpointDue, EpisodesEnded, EvaluationDone, Noted, Outcome, Sample
from starling.errors import CodecError
from starling.params import Params

PARAMS = Params.of({"q.weight": np.arange(6, dtype=np.float32).reshape(3, 2), "q.bias": np.ones(2, np.float32)})
AT: dict[str, Any] = {"elapsed_s": 1.5, "env_steps": 1000, "updates": 30}
MESSAGES: list[Any] = [
    Sample(**AT, roles={"actor[0]": {"counts": {"unrolls": 3}, "time_s": {"acting": 0.5}}}),
    EpisodesEnded(elapsed_s=1.5, env_steps=500, actor=1, returns=[21.0, 9.5], lengths=[21, 9]),
    EvaluationDone(**AT, version=3, mean=480.0, std=1.0, episodes=100),
    CheckpointDue(**AT, version=3, params=PARAMS, best=True, mean=480.0),
    Noted(elapsed_s=0.0, what="lost", facts={"role": "actor[1]", "generation": 2}),
    Outcome(reason="goal", env_steps=9, updates=8, train_s=1.0, params_sha256="ab", best_mean=None),
    Orders(config="seed = 3\n", launched_at=5.5),
    Orders(config="seed = 3\n", launched_at=5.5, version=7, updates=70, env_steps=900, best_mean=4.5, params=PARAMS),
]


class Pipe:
    """A pipe whose other end is read to its close while it is written to."""

    def __init__(self) -> None:
        self.received = b""
        self._read, self.write = os.pipe()
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def close(self) -> bytes:
        os.close(self.write)
        self._thread.join()
        os.close(self._read)
        return self.received

    def _drain(self) -> None:
        while data := os.read(self._read, 1 << 16):
            self.received += data


def framed(*messages: Any) -> bytes:
    pipe = Pipe()
    for message in messages:
        send(pipe.write, message)
    return pipe.close()


def same(one: Any, other: Any) -> bool:
    """Compare two messages field by field, parameters by their bytes."""
    if type(one) is not type(other):
        return False
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(
        a.layout == b.layout and a.buffer.tobytes() == b.buffer.tobytes() if isinstance(a, Params) else a == b
        for a, b in pairs
    )


STREAM = framed(*MESSAGES)


@given(st.lists(st.integers(1, len(STREAM) - 1)))
def test_messages_arrive_whole_and_in_order_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    inbox = Inbox()

    arrived = [message for piece in pieces for message in inbox.feed(piece)]

    assert len(arrived) == len(MESSAGES)
    assert all(map(same, arrived, MESSAGES))


def test_parameters_that_arrive_belong_to_the_receiver() -> None:
    (arrived,) = Inbox().feed(framed(MESSAGES[3]))

    assert isinstance(arrived, CheckpointDue)
    arrived.params.buffer[0] = 5.0
    assert PARAMS.buffer[0] == 0.0


def test_a_message_larger_than_the_pipe_arrives_whole() -> None:
    large = Orders(config="x" * (1 << 20), launched_at=0.0)

    (arrived,) = Inbox().feed(framed(large))

    assert same(arrived, large)


def test_a_mean_that_is_not_finite_arrives_as_none() -> None:
    sent = EvaluationDone(**AT, version=1, mean=float("nan"), std=0.0, episodes=0)

    (arrived,) = Inbox().feed(framed(sent))

    assert isinstance(arrived, EvaluationDone)
    assert arrived.mean is None


def test_a_frame_that_was_damaged_is_refused() -> None:
    damaged = bytearray(framed(MESSAGES[0]))
    damaged[LENGTH.size] ^= 0xFF

    with pytest.raises(CodecError, match="buffer must begin with"):
        list(Inbox().feed(bytes(damaged)))


@pytest.fixture
def orders_pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)


def test_a_supervisor_gets_its_orders(orders_pipe: tuple[int, int]) -> None:
    read_end, write_end = orders_pipe
    send(write_end, MESSAGES[-1])
    os.close(write_end)

    assert same(receive_orders(read_end), MESSAGES[-1])


def test_orders_that_were_cut_off_are_not_followed(orders_pipe: tuple[int, int]) -> None:
    read_end, write_end = orders_pipe
    os.write(write_end, framed(MESSAGES[-1])[:-1])
    os.close(write_end)

    with pytest.raises(EOFError, match="before its orders were whole"):
        receive_orders(read_end)
