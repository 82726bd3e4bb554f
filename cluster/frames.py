"""What the supervisor and its launcher say to each other over a pipe: framed codec buffers, never pickle."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from cluster.contents import Contents
from cluster.report import CheckpointDue, EpisodesEnded, EvaluationDone, Event, Noted, Outcome, Sample
from cluster.rows import as_row, plain
from starling import wire
from starling.codec import decode, encode
from starling.params import Params
from starling.state import State, pack_state, unpack_state

LENGTH = Struct("<Q")
PARAMS = ("params", "initial")
EVENTS: dict[str, Any] = {
    event.__name__: event for event in (Sample, EpisodesEnded, EvaluationDone, CheckpointDue, Noted, Outcome)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a supervisor is started with: the settings, and where the run got to."""

    config: str  # TOML
    launched_at: float  # on the machine's monotonic clock, which all its processes share
    version: int = 0
    updates: int = 0
    env_steps: int = 0
    elapsed_s: float = 0.0
    best_mean: float | None = None
    number: int = 0  # of the newest checkpoint
    params: Params | None = None
    states: Mapping[str, State] = field(default_factory=dict)  # of the newest checkpoint
    initial: Params | None = None  # what the networks of a new run begin with
    folder: str = ""  # of what outlives the shards
    contents: Contents = "new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a supervisor gave up, and why another one would too: the name of an error of ours and its sentence."""

    kind: str
    sentence: str


EVENTS |= {"Orders": Orders, "Refusal": Refusal}
Message = Event | Outcome | Orders | Refusal


def send(pipe: int, message: Message) -> None:
    """Write one message whole."""
    fields = as_row(message)
    arrays = {f"states/{name}": pack_state(state) for name, state in fields.pop("states", {}).items()}
    for name in PARAMS:
        params: Params | None = fields.pop(name, None)
        if params is not None:
            arrays[name] = wire.encode_params(params)
    frame = encode(arrays, {"kind": type(message).__name__, "fields": plain(fields)})
    data = memoryview(LENGTH.pack(frame.nbytes) + frame.tobytes())
    while data:
        data = data[os.write(pipe, data) :]


class Inbox:
    """Puts the bytes that come through a pipe together to messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
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


def _message(arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Message:
    fields = dict(meta["fields"])
    cls = EVENTS[meta["kind"]]
    for name in PARAMS:
        if name in arrays:
            fields[name] = wire.decode_params(arrays[name]).copy()
    packed = {name.removeprefix("states/"): array for name, array in arrays.items() if name.startswith("states/")}
    if packed:
        fields["states"] = {name: unpack_state(array) for name, array in packed.items()}
    message: Message = cls(**fields)
    return message
