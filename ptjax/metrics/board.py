"""TensorBoard's event files, written where they are asked for.

tensorboardX's own SummaryWriter writes in a thread that dies when the disk is full; its queue then
fills, and the training loop waits for ever.
"""

import importlib
import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

_FLUSH_EVERY = 30.0
_numbers = itertools.count()


class Board:
    """One event file in a folder.

    Args:
      folder: made where it does not exist.
      purge_step: what other files of the folder hold from this step on is not shown.

    Raises:
      OSError: by every method, where the file cannot be written.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None):
        events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        place = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._event, self._flushed = events.Event, time.monotonic()
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{place}"))
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            started = events.SessionLog(status=events.SessionLog.START)
            self._write(step=purge_step, session_log=started)

    def scalar(self, step: int, tag: str, value: float) -> None:
        """Adds a number."""
        from tensorboardX.summary import scalar

        self._write(step=step, summary=scalar(tag, value))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Adds a text."""
        from tensorboardX.summary import text

        self._write(step=step, summary=text(tag, markdown))

    def close(self) -> None:
        """Writes what is left."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed >= _FLUSH_EVERY:
            self._flushed = time.monotonic()
            self._records.flush()
