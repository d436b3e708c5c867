"""SIGTERM and Ctrl-C as a request to save and stop, seen at the same step by every process."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)


class Watch:
    """Says whether the run was asked to stop. Made by `watch`."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def requested(self, step: int) -> bool:
        """True from the step on at which this run should save and stop.

        Args:
          step: the step just done; all processes must ask at every step, with the same number.

        """
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal = number
        name = signal.Signals(number).name
        _log.warning("%s: saving at the end of this step; a second one stops at once", name)


@contextmanager
def watch() -> Iterator[Watch]:
    """Handles SIGTERM and SIGINT inside the block; the second signal kills.

    With several processes the coordination service of `jax.distributed` watches SIGTERM, and no
    handler is set here. Nor outside the main thread, where Python allows none.
    """
    seen = Watch()
    ours = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if ours else ()
    before = {number: signal.signal(number, seen._handle) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
