"""Ctrl-C and SIGTERM: the first asks a run to stop, the second ends it at once."""

import signal
from types import FrameType, TracebackType
from typing import Self

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal came. As a context it stands in for the handlers of these signals, in the main thread."""

    def __init__(self) -> None:
        self._came = False
        self._before = {number: signal.getsignal(number) for number in STOPPING}

    def __call__(self) -> bool:
        """Say whether the run shall stop."""
        return self._came

    def __enter__(self) -> Self:
        for number in STOPPING:
            signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
