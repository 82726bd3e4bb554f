"""The slices of the parameters behind Ray, as workers and the evaluator know them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.handles import LOST, Line, Peer
from param_server.slices import cut, parts
from starling import gradient_wire
from starling.gradients import Gradient, Versions
from starling.metrics import Clock

READ_EVERY_S = 0.05  # between questions for newer values of all slices


class RemoteSlices:
    """A worker's way to all slices of the parameters: few gradients in flight, and each slice's newest values.

    What was in flight to a slice that dies is lost to it alone. Its successor is asked for its values before the
    worker goes on, since those of its predecessor may be ahead of what it holds.
    """

    def __init__(self, peers: Sequence[Peer], clock: Clock, in_flight: int = 1) -> None:
        self.lines = [Line(peer, clock) for peer in peers]
        self._roles = [peer.role for peer in peers]
        self._in_flight = in_flight
        self._generations = [line.generation for line in self.lines]
        self._newest: list[tuple[int, NDArray[np.float32]] | None] = [None for _ in peers]

    def push(self, gradient: Gradient) -> None:
        """Send a gradient to every slice."""
        cuts = cut(len(gradient.values), len(self.lines))
        for line, part in zip(self.lines, parts(gradient, cuts), strict=True):
            line.call("push", gradient_wire.encode_push(part))

    def must_wait(self) -> str:
        """Wait for slices that are down, and for answers when too many are missing."""
        self._listen()
        for line, role, newest in zip(self.lines, self._roles, self._newest, strict=True):
            if down := line.waits():
                return down
            if newest is None:
                return f"parameters from {role}"
            if len(line) >= self._in_flight:
                return f"{role} to answer"
        return ""

    def fetch(self, newer_than: Versions) -> tuple[Versions, NDArray[np.float32]] | None:
        """Return the newest parameters that have arrived, if any slice's are newer."""
        self._listen()
        known = [newest for newest in self._newest if newest is not None]
        versions = tuple(version for version, _ in known)
        if len(known) < len(self.lines) or versions == newer_than:
            return None
        values = [values for _, values in known]
        return versions, values[0] if len(values) == 1 else np.concatenate(values)

    def _listen(self) -> None:
        for index, line in enumerate(self.lines):
            for answer in line.answers():
                if answer is not LOST:
                    self._newest[index] = _version_and_values(answer)
            if line.generation != self._generations[index]:
                self._generations[index], self._newest[index] = line.generation, None
            if self._newest[index] is None and not len(line) and not line.waits():
                line.call("fetch", -1)


class RemoteValues:
    """The evaluator's way to the values of all slices: they are asked together, and together they are given.

    What one has answered is not kept for another round, in which it would be older than the others' values. A slice
    that has nothing newer answers with little; one that is versions ahead of the others sends its values each round.
    """

    def __init__(self, peers: Sequence[Peer], clock: Clock) -> None:
        self.lines = [Line(peer, clock) for peer in peers]
        self._clock = clock
        self._asked = -READ_EVERY_S
        self._come: dict[int, tuple[int, NDArray[np.float32]]] = {}  # of this round, by slice

    def fetch(self, newer_than: int) -> tuple[int, NDArray[np.float32]] | None:
        """Return `(version, values)` of the whole once every slice has sent what is newer."""
        for index, line in enumerate(self.lines):
            for answer in line.answers():
                if answer is not None and answer is not LOST:
                    self._come[index] = answer
        if len(self._come) == len(self.lines):
            return self._together(newer_than)
        if self._clock() - self._asked >= READ_EVERY_S and not any(map(len, self.lines)):
            self._ask(newer_than)
        return None

    def _together(self, newer_than: int) -> tuple[int, NDArray[np.float32]] | None:
        come = [self._come[index] for index in range(len(self.lines))]
        self._come.clear()
        version = min(version for version, _ in come)
        return None if version <= newer_than else (version, np.concatenate([values for _, values in come]))

    def _ask(self, newer_than: int) -> None:
        self._asked = self._clock()
        self._come.clear()
        if not any(line.waits() for line in self.lines):
            for line in self.lines:
                line.call("fetch", newer_than)


def _version_and_values(answer: Any) -> tuple[int, NDArray[np.float32]]:
    if isinstance(answer, tuple):
        version, values = answer
        return version, values
    pushed = gradient_wire.decode_pushed(answer)
    return pushed.version, pushed.values
