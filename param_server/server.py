"""The parameter server's one class."""

from typing import Any

from starling.metrics import Clock, Meter
from starling.params import Params


class ParamServer:
    """Holds one version of the parameters; publishing replaces it. Never waits.

    Versions only grow: a publication that is not newer is refused and counted, so that a late message can't take
    readers back. Readers pass the version they have; one that is up to date costs one small message.
    Called from one thread.
    """

    def __init__(self, clock: Clock) -> None:
        self._meter = Meter(clock)
        self._version = 0
        self._learner = 0  # the newest generation of it that published
        self._params: Params | None = None

    def publish(self, version: int, params: Params, generation: int = 0) -> None:
        """Replace the parameters by a newer version, unless the learner that sends it was replaced."""
        if version <= self._version or generation < self._learner:
            self._meter.count("refused")
            return
        self._version, self._params, self._learner = version, params, generation
        self._meter.count("published")
        self._meter.gauge("version", version)

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        """Return `(version, params)`, or None if `newer_than` is already the newest."""
        if self._params is None or newer_than >= self._version:
            self._meter.count("nothing_newer")
            return None
        self._meter.count("fetched")
        return self._version, self._params

    def stats(self) -> dict[str, Any]:
        """Return what was published and fetched."""
        return self._meter.snapshot()
