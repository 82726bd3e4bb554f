"""A checkpoint's snapshot of all shards, while it is being taken behind the supervisor's back."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.handles import ENDED
from starling.metrics import Clock
from starling.state import State, unpack_state

LIMIT_S = 30.0


class Snapshot:
    """One moment of every shard, or nearly: asked for at once, and collected without waiting for anybody."""

    def __init__(self, name: str, shards: Mapping[str, Any], clock: Clock, limit_s: float = LIMIT_S) -> None:
        self.name = name
        self.states: dict[str, State] = {}
        self.failed = ""  # why it will never be whole
        self._shards = dict(shards)
        self._clock = clock
        self._until = clock() + limit_s
        for shard in shards.values():
            shard.snapshot.remote(name)
        self._asked = {role: shard.taken.remote(name) for role, shard in shards.items()}

    def is_under_way(self) -> bool:
        """Take in the answers that have come, and say whether others are still to come."""
        for role, asked in list(self._asked.items()):
            if ray.wait([asked], timeout=0)[0]:
                self._hear(role, asked)
        if self._asked and self._clock() > self._until:
            self.failed = f"{', '.join(self._asked)} did not write it in time"
            self._asked.clear()
        return bool(self._asked)

    def drop(self) -> None:
        """Have what was written of it removed: no checkpoint will name it."""
        for shard in self._shards.values():
            shard.drop.remote(self.name)

    def _hear(self, role: str, asked: Any) -> None:
        del self._asked[role]
        try:
            packed = ray.get(asked)
        except ENDED:
            self.failed = f"{role} died"
        except RayTaskError as error:
            self.failed = f"{role}: {error.cause}"
        else:
            if packed is None:
                self._asked[role] = self._shards[role].taken.remote(self.name)
            else:
                self.states[role] = unpack_state(packed)
