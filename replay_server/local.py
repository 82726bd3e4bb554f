"""Shards in the same process: the replay service without a network between."""

from collections.abc import Sequence
from typing import Protocol

from starling.types import InsertReply, SampleReply, SampleRequest, Unroll


class Shard(Protocol):
    """A shard, whether its contents outlive it or not."""

    def insert(self, unroll: Unroll) -> InsertReply:
        """Store an unroll."""

    def credit(self) -> int:
        """Return how many windows may still come."""

    def sample(self, request: SampleRequest) -> SampleReply:
        """Serve windows."""


class LocalReplay:
    """A ReplaySource whose shards answer at once."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._replies: list[tuple[int, SampleReply | None]] = []

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def request(self, shard: int, request: SampleRequest) -> None:
        """Ask one shard."""
        self._replies.append((shard, self._shards[shard].sample(request)))

    def replies(self) -> list[tuple[int, SampleReply | None]]:
        """Return the answers since the last call."""
        answers, self._replies = self._replies, []
        return answers


class LocalSink:
    """A ReplaySink to one shard; its writer waits while the shard has no credit."""

    def __init__(self, shard: Shard, index: int) -> None:
        self._shard = shard
        self._index = index

    def insert(self, unroll: Unroll) -> None:
        """Store one unroll."""
        self._shard.insert(unroll)

    def must_wait(self) -> str:
        """Name the shard that has no credit for this writer."""
        return "" if self._shard.credit() else f"insert credit from replay_server[{self._index}]"
