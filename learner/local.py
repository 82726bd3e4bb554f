"""The way into a learner in the same process: no network between, and nothing to wait for but a place."""

from learner.inlet import Inlet
from starling.types import Unroll


class LocalInlet:
    """A ReplaySink to a learner's own inlet; its writer waits while it has no credit there."""

    def __init__(self, inlet: Inlet) -> None:
        self._inlet = inlet
        self._actor = 0  # who writes; before the first unroll anybody may
        self._credit = 1

    def insert(self, unroll: Unroll) -> None:
        """Send one unroll."""
        self._actor = unroll.actor
        self._credit = self._inlet.insert(unroll).credit

    def must_wait(self) -> str:
        """Say whom there is no credit from, and why."""
        if self._credit > 0:
            return ""
        room = self._inlet.credit(self._actor)
        self._credit = room.credit
        return "" if room.credit else f"learner[0] ({room.waits})"
