"""One live line in a terminal, a plain line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

# What is shown of a step's metrics, in this order: (metric, label, how it is written).
_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "loss", lambda v: f"{v:.4f}"),
    ("lr", "lr", lambda v: f"{v:.2e}"),
    ("tokens_per_second", "tok/s", lambda v: f"{v:,.0f}"),
    ("mfu", "MFU", lambda v: f"{v:.1%}"),
    ("rollout/reward", "reward", lambda v: f"{v:.3f}"),
    ("rollout/tokens", "length", lambda v: f"{v:.0f}"),
    ("grad_norm", "grad", lambda v: f"{v:.3g}"),
    ("skipped", "skipped", lambda v: f"{v:.0f}"),
    ("pairs", "pairs", lambda v: f"{v:.0f}"),
)


def line(
    step: int,
    total: int,
    metrics: Mapping[str, Any],
    eta: int | float | None,
    unit: str = "step",
) -> str:
    """`step 12/200  loss 2.3451  lr 1.00e-04  tok/s 4,321  grad 0.83  ETA 3:21`.

    Metrics that are absent are left out, and so is `skipped` while it is 0.
    """
    parts = [f"{unit} {step:>{len(str(total))}}/{total}"]
    for name, label, written in _SHOWN:
        value = metrics.get(name)
        if value is not None and (name != "skipped" or value):
            parts.append(f"{label} {written(float(value))}")
    if eta is not None and step < total:
        parts.append(f"ETA {duration(eta)}")
    return "  ".join(parts)


def duration(seconds: int | float) -> str:
    """`3:21` or `1:02:03`."""
    whole = max(0, math.ceil(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Progress:
    """Shows how far a run is; use as a context manager.

    In a terminal it is a bar that stays below what is logged; elsewhere one plain line every
    `every` seconds and at the first and the last step.

    Args:
      total: steps of the whole run.
      unit: what a step is called.
      start: steps already taken, when resumed.
      stream: a text file to write to; standard error when None.
      every: seconds between two plain lines.
      quiet: show nothing but what is given to `log`.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str = "step",
        start: int = 0,
        stream: Any = None,
        every: int | float = 10,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._quiet = quiet
        self._clock = clock
        self._begin: tuple[int, float] | None = None
        self._start = start
        self._shown = -math.inf
        self._bar: Any = None
        if not quiet and self._stream.isatty():
            self._bar = _bar(self._stream, total, start)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows step `step` (1 is the first) and the numbers of `metrics` that have a place."""
        now = self._clock()
        if self._begin is None:  # the first step compiles: it says nothing about the others
            self._begin = (step, now)
        eta = self._eta(step, now)
        if self._quiet:
            return
        if self._bar is not None:
            text = line(step, self._total, metrics, eta, self._unit)
            self._bar.update(self._bar.task_ids[0], completed=step, text=text)
            return
        first = step == self._start + 1
        if first or step >= self._total or now - self._shown >= self._every:
            self._shown = now
            self.log(line(step, self._total, metrics, eta, self._unit))

    def log(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def show(self, table: Any) -> None:
        """Prints a rich table, above the bar where there is one."""
        if self._quiet:
            return
        from rich.console import Console

        console = self._bar.console if self._bar is not None else Console(file=self._stream)
        console.print(table)

    def close(self) -> None:
        """Leaves the last state standing and gives the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _eta(self, step: int, now: float) -> float | None:
        if self._begin is None or step <= self._begin[0]:
            return None
        taken, seconds = step - self._begin[0], now - self._begin[1]
        return seconds / taken * (self._total - step)


def _bar(stream: Any, total: int, start: int) -> Any:
    """A started rich bar; what is printed or logged meanwhile appears above it."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Rich

    columns = (BarColumn(bar_width=16), TextColumn("{task.fields[text]}", markup=False))
    bar = Rich(*columns, console=Console(file=stream), refresh_per_second=4)
    bar.add_task("", total=total, completed=start, text="compiling")
    bar.start()
    return bar
