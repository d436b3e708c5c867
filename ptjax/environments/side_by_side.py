"""Calls of foreign code side by side, each with a time limit; none can hold up the others."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ptjax.errors import UserError

T = TypeVar("T")

AT_ONCE = 8
"""Calls that run at one time, those left behind not counted."""


def side_by_side(
    calls: Sequence[Callable[[], T]], seconds: float | None
) -> list[T | BaseException]:
    """What each call returns, or what it raises.

    A thread cannot be ended: a call that hangs is left behind in its own, another takes its place,
    and the process does not wait for it at its end.

    Args:
      calls: in threads of their own.
      seconds: that each may take, after which it has raised a TimeoutError; None: any, and the
        calls run one after the other on the thread that asks.

    Raises:
      UserError: a call raises one.
    """
    found = [_outcome(call) for call in calls] if seconds is None else _in_threads(calls, seconds)
    for outcome in found:
        if isinstance(outcome, UserError):
            raise outcome
    return found


def _in_threads(calls: Sequence[Callable[[], T]], seconds: float) -> list[T | BaseException]:
    over = TimeoutError(f"no answer in {seconds:g} s")
    found: list[T | BaseException] = [over] * len(calls)
    ended: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()
    running: dict[int, float] = {}
    begun = 0

    def run(i: int) -> None:
        ended.put((i, _outcome(calls[i])))

    while running or begun < len(calls):
        while begun < len(calls) and len(running) < AT_ONCE:
            running[begun] = time.monotonic() + seconds
            threading.Thread(target=run, args=(begun,), daemon=True).start()
            begun += 1
        left = min(running.values()) - time.monotonic()
        try:
            i, outcome = ended.get(timeout=max(left, 0))
        except queue.Empty:
            now = time.monotonic()
            running = {i: until for i, until in running.items() if until > now}
            continue
        if running.pop(i, None) is not None:  # else its time was over before
            found[i] = outcome
    return found


def _outcome(call: Callable[[], T]) -> T | BaseException:
    try:
        return call()
    except (Exception, SystemExit) as error:
        return error
