"""Writes a run's numbers and samples: JSON lines that a resumed run continues, and TensorBoard."""

import contextlib
import importlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptjax.errors import UserError
from ptjax.metrics.board import Board
from ptjax.metrics.completions import Rows, as_markdown, write_completions
from ptjax.metrics.files import (
    METRICS,
    SAMPLES,
    WANDB,
    cut_torn_line,
    download,
    replace_file,
    rows_of,
    upload,
)


class Metrics:
    """The metrics of one run in its workdir; on processes other than 0 every method does nothing.

    `metrics.jsonl` holds `{"step", "time", name: number}` a line, `samples.jsonl`
    `{"step", "time", "prompt", "completion"}`, `tensorboard/` event files. A number that is not
    finite is `null` in JSON. In a workdir of an object store (`gs://...`) the files are kept
    locally and copied there every `sync_every` seconds, by `sync` and at `close`.

    Args:
      workdir: the run's folder; created if it is not there.
      wandb: arguments of `wandb.init` (`{"project": ...}`), or None for no Weights & Biases.
      process_index: `jax.process_index()`.
      tensorboard: whether to write TensorBoard event files.
      sync_every: seconds between two copies to an object store.
      clock: seconds since the epoch.

    Raises:
      UserError: the workdir cannot be written, or wandb is asked for and not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        wandb: Mapping[str, Any] | None = None,
        process_index: int = 0,
        tensorboard: bool = True,
        sync_every: int | float = 60,
        clock: Callable[[], float] = time.time,
    ):
        self._enabled = process_index == 0
        self._clock = clock
        self._board: Board | None = None
        self._wandb: Any = None
        self._files: dict[str, Any] = {}
        if not self._enabled:
            return
        self._remote = str(workdir) if "://" in str(workdir) else None
        self._sync_every = sync_every
        self._synced = clock()
        self._folder = Path(tempfile.mkdtemp(prefix="ptjax-")) if self._remote else Path(workdir)
        self._use_board = tensorboard
        if self._remote:
            download(self._remote, self._folder)
        self._guarded(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        if wandb is not None:
            self._wandb = _start_wandb(self._folder, dict(wandb))
        for name in (METRICS, SAMPLES):
            self._open(name)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line of numbers; `values` may be Python, numpy or jax scalars."""
        if not self._enabled:
            return
        numbers = {name: _number(value) for name, value in values.items()}
        self._append(METRICS, step, {k: _finite(v) for k, v in numbers.items()})
        if self._use_board:
            self._guarded(lambda: self._scalars(step, numbers))
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)
        self._sync()

    def samples(self, step: int, pairs: Sequence[tuple[str, str]]) -> None:
        """Writes (prompt, completion) pairs, what the model says at `step`."""
        if not self._enabled:
            return
        for i, (prompt, completion) in enumerate(pairs):
            self._append(SAMPLES, step, {"prompt": prompt, "completion": completion})
            self.text(step, f"samples/{i}", f"**{prompt}**\n\n{completion}")

    def completions(self, step: int, rows: Rows) -> None:
        """Keeps what a policy answered before `step`; a few of it in TensorBoard."""
        if not self._enabled or not rows:
            return
        self._guarded(lambda: write_completions(self._folder, step, rows))
        self.text(step, "completions", as_markdown(rows))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Shows a text in TensorBoard."""
        if self._enabled and self._use_board:
            self._guarded(lambda: self._tensorboard().text(step, tag, markdown))

    def resume(self, step: int) -> None:
        """Drops what is later than `step`, so that a run continued from there has each step once.

        `resume(-1)` begins anew. Lines that cannot be read, such as a last line cut by a kill, go.
        """
        if not self._enabled:
            return
        for name in (METRICS, SAMPLES):
            path = self._folder / name
            self._files.pop(name).close()
            rows = [row for row in rows_of(path) if row.get("step", -1) <= step]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            self._guarded(lambda path=path, text=text: replace_file(path, text))
            self._open(name)
        if self._use_board:
            folder = self._folder / "tensorboard"
            self._board = self._guarded(lambda: Board(folder, purge_step=step + 1))

    def sync(self) -> None:
        """Copies the files to the object store now, where the workdir is in one."""
        if self._enabled and self._remote:
            self._synced = self._clock()
            upload(self._folder, self._remote)

    def close(self) -> None:
        """Flushes and closes everything; may be called twice."""
        if not self._enabled:
            return
        for file in (*self._files.values(), *([self._board] if self._board else [])):
            with contextlib.suppress(OSError):  # a line that did not fit was reported by its write
                file.close()
        if self._wandb is not None:
            self._wandb.finish()
        self.sync()
        self._board = self._wandb = None

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scalars(self, step: int, numbers: Mapping[str, Any]) -> None:
        for name, value in numbers.items():
            self._tensorboard().scalar(step, name, value)

    def _tensorboard(self) -> Board:
        if self._board is None:
            self._board = Board(self._folder / "tensorboard")
        return self._board

    def _open(self, name: str) -> None:
        path = self._folder / name
        self._guarded(lambda: cut_torn_line(path))
        self._files[name] = self._guarded(lambda: path.open("a", encoding="utf-8", buffering=1))

    def _append(self, name: str, step: int, values: dict[str, Any]) -> None:
        row = {"step": int(step), "time": round(self._clock(), 3), **values}
        self._guarded(lambda: self._files[name].write(json.dumps(row) + "\n"))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            raise UserError(
                f"cannot write metrics in {self._folder}: {error.strerror or error}; "
                "free space or choose another --workdir, then run the same command to resume"
            ) from error

    def _sync(self) -> None:
        if self._clock() - self._synced >= self._sync_every:
            self.sync()


def _number(value: Any) -> float | int:
    return value if isinstance(value, int) else float(value)


def _finite(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


def _start_wandb(folder: Path, arguments: dict[str, Any]) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            "config.log.wandb is set, but wandb is not installed: pip install wandb"
        ) from None
    record = folder / WANDB
    if record.exists():
        arguments |= {"id": json.loads(record.read_text())["id"], "resume": "allow"}
    run = wandb.init(dir=str(folder), **arguments)
    replace_file(record, json.dumps({"id": run.id}))
    return run
