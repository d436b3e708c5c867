"""JSON lines with random access, and a plain reason for every line that is not one."""

import hashlib
import json
import mmap
import os
from typing import Any

import numpy as np

from ptjax.data.rows import BadRow, Row, no_rows
from ptjax.json_errors import in_words

_BOMS = {
    b"\xef\xbb\xbf": "begins with a byte order mark: save it as UTF-8 without one",
    b"\xff\xfe": "is UTF-16: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
}


class JsonLines:
    """The lines of one file, found by an index of byte offsets."""

    def __init__(self, path: str):
        self.path = path
        self._offsets = _line_offsets(path)
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def read(self, start: int, stop: int) -> list[Row | BadRow]:
        """The rows of lines `start` to `stop`, counted from 0."""
        if self._map is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        rows = []
        for index in range(start, min(stop, len(self))):
            line = self._map[self._offsets[index] : self._offsets[index + 1]]
            row = parse_line(line, first=index == 0)
            rows.append(BadRow(self.where(index), *row) if isinstance(row, tuple) else row)
        return rows

    def where(self, index: int) -> str:
        """File and line of a row; lines count from 1."""
        return f"{self.path}, line {index + 1}"

    def fingerprint(self) -> list[Any]:
        """Path, size and time of change."""
        return file_fingerprint(self.path)

    def content(self) -> str:
        """A digest of the file's bytes."""
        return file_content(self.path)


def file_fingerprint(path: str) -> list[Any]:
    """Path, size and time of change of a file."""
    stat = os.stat(path)
    return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]


def file_content(path: str) -> str:
    """A digest of a file's bytes: alike for copies of it, wherever they are."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def parse_line(line: bytes, *, first: bool = False) -> Row | tuple[str, str]:
    """One line's object, or (reason, detail) when it has none.

    Args:
      line: the line's bytes, with its newline where it has one.
      first: whether it is the file's first line, where a byte order mark may stand.

    """
    if first:
        for mark, reason in _BOMS.items():
            if line.startswith(mark):
                return reason, ""
    if b"\0" in line:
        return "holds a NUL byte", f"at byte {line.index(0)}"
    if not line.strip():
        return "empty line", ""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return "is not UTF-8", f"byte 0x{line[error.start]:02x} at position {error.start}"
    try:
        row = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n") and error.pos >= len(text.rstrip()) - 1:
            return "cut off in the middle: the file ends within a row", ""
        if error.msg == "Extra data":
            return "more than one value on the line", f"column {error.colno}"
        if error.msg.startswith("Unterminated string") and not line.endswith(b"\n"):
            return "cut off in the middle: the file ends within a row", ""
        return "is not JSON", in_words(error)
    except RecursionError:
        return "nested too deeply", ""
    except _Refused as error:
        return error.args
    except ValueError as error:
        return "holds a number too long to read", str(error).split(";")[0]
    if not isinstance(row, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(type(row), "a number")
        return f"is {kind}, not an object", ""
    if "\\ud" in text.lower() and not _encodable(row):
        return "holds half a surrogate pair", ""
    return row


class _Refused(Exception):
    """Valid for Python's json, not for us: (reason, detail)."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused("names a key twice", repr(twice))
    return made


def _refuse_constant(name: str) -> None:
    raise _Refused("holds NaN or Infinity, which JSON has not", name)


def _encodable(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _line_offsets(path: str) -> np.ndarray:
    """Byte offsets of the lines' beginnings and of the end; blank lines at the end left out."""
    offsets, position = [np.zeros(1, np.int64)], 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            found = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            offsets.append(found + position + 1)
            position += len(chunk)
        starts = np.concatenate(offsets)
        if starts[-1] != position:
            starts = np.append(starts, position)
        end = len(starts) - 1
        while end > 0:
            file.seek(starts[end - 1])
            if file.read(starts[end] - starts[end - 1]).strip():
                break
            end -= 1
    if end == 0:
        raise no_rows(path, "the file is empty")
    return starts[: end + 1]
