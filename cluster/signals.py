"""Ctrl-C and SIGTERM: the first asks a run to stop, the second ends it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal came. As a context it stands in for the handlers of these signals, in the main thread.

    Only the second one interrupts; more of them, also after the context's end, must not disturb what is being put away.
    """

    def __init__(self) -> None:
        self._came = 0
        self._before = {number: signal.getsignal(number) for number in STOPPING}

    def __call__(self) -> bool:
        """Say whether the run shall stop."""
        return self._came > 0

    def __enter__(self) -> Self:
        for number in STOPPING:
            signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._came else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came += 1
        if self._came == 2:
            raise KeyboardInterrupt


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold such signals back until the block is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
