"""From a path, a glob or a hub name to rows."""

import bisect
import glob
import hashlib
import itertools
import os
from collections.abc import Callable
from typing import Any

from ptjax.data.config import SourceConfig
from ptjax.data.jsonl import JsonLines
from ptjax.data.rows import BadRow, Row, Rows, no_rows
from ptjax.data.tabular import ArrayRecord, Hub, JsonArray, Parquet, is_saved_dataset
from ptjax.errors import UserError, did_you_mean


class Joined:
    """Several sources read as one, in their order."""

    def __init__(self, parts: list[Rows], limit: int | None = None):
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self._length = min(self._ends[-1], limit or self._ends[-1])

    def __len__(self) -> int:
        return self._length

    def _locate(self, index: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)

    def read(self, start: int, stop: int) -> list[Row | BadRow]:
        """The rows from `start` up to `stop`."""
        rows: list[Row | BadRow] = []
        while start < min(stop, self._length):
            part, first = self._locate(start)
            end = min(stop, self._length, self._ends[part])
            rows += self._parts[part].read(first, first + end - start)
            start = end
        return rows

    def where(self, index: int) -> str:
        """File and line of a row."""
        part, local = self._locate(index)
        return self._parts[part].where(local)

    def fingerprint(self) -> list[Any]:
        """The parts' fingerprints and the limit."""
        return [[part.fingerprint() for part in self._parts], self._length]

    def content(self) -> str:
        """A digest of the parts' contents."""
        parts = [part.content() for part in self._parts]
        return (
            parts[0] if len(parts) == 1 else hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
        )


def open_source(source: SourceConfig) -> Joined:
    """Opens whatever `source.path` names.

    Raises:
      UserError: nothing there, a folder, an unknown extension, an empty or damaged file.

    """
    path = os.path.expanduser(source.path)
    if path.startswith("hf:") or is_saved_dataset(path):
        return Joined([Hub(path, source.split)], source.limit)
    if source.split is not None:
        raise UserError(f"{path}: only hub data sets have splits; leave out split={source.split!r}")
    paths = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
    if os.path.exists(path):
        paths = [path]
    if not paths:
        raise UserError(f"{path}: no file matches")
    return Joined([_open_file(file) for file in paths], source.limit)


def _open_file(path: str) -> Rows:
    if os.path.isdir(path):
        raise UserError(
            f"{path}: is a folder; name its files, for example {path.rstrip('/')}/*.jsonl"
        )
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file{_neighbour(path)}")
    extension = os.path.splitext(path)[1].lower()
    if extension not in _OPENERS:
        hint = did_you_mean(extension, _OPENERS)
        raise UserError(f"{path}: unknown extension {extension or '(none)'!r}{hint}")
    try:
        if os.path.getsize(path) == 0:
            raise no_rows(path, "the file is empty")
        return _OPENERS[extension](path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _neighbour(path: str) -> str:
    """A file of the same folder with nearly the same name."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"; nor is there a folder {folder}"
    hint = did_you_mean(os.path.basename(path), os.listdir(folder))
    return hint if "did you mean" in hint else ""


def _json(path: str) -> Rows:
    """A `.json` file: one array, or lines under the wrong name."""
    with open(path, "rb") as file:
        begins = file.read(4096).lstrip()
    return JsonLines(path) if begins.startswith(b"{") else JsonArray(path)


_OPENERS: dict[str, Callable[[str], Rows]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": _json,
    ".parquet": Parquet,
    ".arrayrecord": ArrayRecord,
    ".array_record": ArrayRecord,
}
