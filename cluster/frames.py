"""What the supervisor and its launcher say to each other over a pipe: framed codec buffers, never pickle."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any

from cluster.report import CheckpointDue, EpisodesEnded, EvaluationDone, Event, Noted, Outcome, Sample
from cluster.rows import as_row, plain
from starling import wire
from starling.codec import decode, encode
from starling.params import Params

LENGTH = Struct("<Q")
EVENTS: dict[str, Any] = {
    event.__name__: event for event in (Sample, EpisodesEnded, EvaluationDone, CheckpointDue, Noted, Outcome)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a supervisor is started with: the settings, and where an earlier one of the same run got to."""

    config: str  # TOML
    launched_at: float  # on the machine's monotonic clock, which all its processes share
    version: int = 0
    updates: int = 0
    env_steps: int = 0
    elapsed_s: float = 0.0
    best_mean: float | None = None
    params: Params | None = None


EVENTS["Orders"] = Orders


def send(pipe: int, message: Event | Outcome | Orders) -> None:
    """Write one message whole."""
    fields = as_row(message)
    params: Params | None = fields.pop("params", None)
    arrays = {} if params is None else {"params": wire.encode_params(params)}
    frame = encode(arrays, {"kind": type(message).__name__, "fields": plain(fields)})
    data = memoryview(LENGTH.pack(frame.nbytes) + frame.tobytes())
    while data:
        data = data[os.write(pipe, data) :]


class Inbox:
    """Puts the bytes that come through a pipe together to messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Event | Outcome | Orders]:
        """Yield the messages that these bytes complete."""
        self._bytes += data
        while len(self._bytes) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._bytes)[0]
            if len(self._bytes) < end:
                return
            frame = bytes(self._bytes[LENGTH.size : end])
            del self._bytes[:end]
            yield _message(*decode(frame))


def receive_orders(pipe: int) -> Orders:
    """Read the orders, waiting for all of them; the launcher writes them at once."""
    inbox = Inbox()
    while data := os.read(pipe, 1 << 16):
        for message in inbox.feed(data):
            assert isinstance(message, Orders), "a supervisor's first message is its orders"
            return message
    raise EOFError("the launcher closed the pipe before its orders were whole")


def _message(arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Event | Outcome | Orders:
    fields = dict(meta["fields"])
    cls = EVENTS[meta["kind"]]
    if "params" in cls.__dataclass_fields__:
        fields["params"] = wire.decode_params(arrays["params"]).copy() if arrays else None
    message: Event | Outcome | Orders = cls(**fields)
    return message
