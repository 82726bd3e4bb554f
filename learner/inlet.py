"""Where whole unrolls enter a learner: what the queue and the lineup have in common."""

from typing import Protocol

from starling.types import InsertReply, Room, Unroll


class Inlet(Protocol):
    """Takes actors' unrolls, in any thread, and never waits for the learner."""

    def insert(self, unroll: Unroll) -> InsertReply:
        """Take or refuse one unroll."""

    def credit(self, actor: int) -> Room:
        """Return how many more unrolls this actor may send."""

    def wait(self, timeout_s: float) -> None:
        """Return when something came that the learner did not have, or after this time."""


class Heard:
    """Which unrolls came: each counts once, and none of an actor that was replaced. Those of one come in order."""

    def __init__(self) -> None:
        self._newest: dict[int, tuple[int, int]] = {}

    def is_new(self, unroll: Unroll) -> bool:
        """Remember an unroll, and say whether it is to be learned from."""
        number = unroll.generation, unroll.sequence
        if number <= self._newest.get(unroll.actor, (-1, -1)):
            return False
        self._newest[unroll.actor] = number
        return True

    def clear(self) -> None:
        """Forget what came."""
        self._newest.clear()


def version_of(unroll: Unroll) -> int:
    """Return the version of the oldest parameters that acted in it."""
    return int(unroll.columns["version"].min())
