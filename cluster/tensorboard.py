"""Curves for TensorBoard, in the run's folder."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes event files from the caller's thread.

    tensorboardX's own thread would end at a full disk and leave its callers waiting for ever. Here figures that the
    disk refuses are lost, as rows keep them too, and the next ones begin a new file: a torn one can't be gone on with.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # half a second: only for a run that begins
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        self._open, self._event, self._scalar = EventsWriter, Event, scalar
        self._folder = folder
        self._files = 0
        self._writer: Any = None

    def add(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Record figures at this count of steps; what is not finite has no place on a curve."""
        try:
            self._begin()
            for tag, value in scalars.items():
                if isfinite(value):
                    summary = self._scalar(tag, value)
                    event = self._event(wall_time=time.time(), step=env_steps, summary=summary)
                    self._writer.write_event(event)
        except OSError:
            self.close()

    def close(self) -> None:
        """Write what is still held back."""
        if self._writer is not None:
            with suppress(OSError):  # a full disk
                self._writer.close()
        self._writer = None

    def _begin(self) -> None:
        if self._writer is None:
            self._folder.mkdir(exist_ok=True)
            self._writer = self._open(str(self._folder / "events"), f".{os.getpid()}.{self._files}")
            self._files += 1
