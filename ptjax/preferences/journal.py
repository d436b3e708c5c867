"""A file made batch by batch, by a run that may be killed at any time.

    pairs.jsonl.part          lines so far; renamed to pairs.jsonl when all is done
    pairs.jsonl.record.json   settings, batches done, bytes and their checksum, counts

A batch is done when the record says so; what lies beyond its bytes is cut off by the next run.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptjax.errors import UserError
from ptjax.metrics.files import replace_file
from ptjax.writable import check_folder


def check(path: Path) -> None:
    """Refuses a file that cannot be made, or is not ours to go on with; leaves nothing behind.

    Raises:
      UserError: a folder or another's file is there, or nothing can be written.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the file to make")
    check_folder(path.parent, "place")
    there = next((one for one in (path, _part(path)) if one.exists()), None)
    if there is not None and not _record(path).exists():
        raise UserError(f"{there} exists and has no record; remove it, or give another name")


class Journal:
    """Appends lines in batches; the same settings go on where an earlier run stopped.

    Attributes:
      done: batches that are in the file.
      totals: what the last `append` was given.
      finished: whether the file is complete.

    Args:
      path: the file to make; its folder is made too.
      settings: JSON-able; all that its bytes depend on.

    Raises:
      UserError: the file was made with other settings, by something else, or changed meanwhile.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self._part, self._record = _part(path), _record(path)
        self._settings = json.loads(json.dumps(settings))
        self._hash = hashlib.sha256()
        self._bytes = 0
        self.done = 0
        self.totals: dict[str, Any] = {}
        self.finished = False
        check(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            record = self._read() if self._record.exists() else None
            if record is not None and (record["bytes"] or record["settings"] == self._settings):
                self._resume(record)
            elif record is not None:  # other settings, and nothing made with the former
                self._part.unlink(missing_ok=True)
                self._write(finished=False)
            else:
                self._write(finished=False)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error

    def append(self, rows: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> None:
        """Adds a batch; after a kill it is there whole or not at all.

        Args:
          rows: a JSON object a line.
          totals: kept in the record.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = text.encode()
        try:
            with self._part.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._hash.update(data)
            self._bytes += len(data)
            self.done += 1
            self.totals = dict(totals)
            self._write(finished=False)
        except OSError as error:
            raise UserError(f"{self._part}: cannot be written ({error.strerror})") from error

    def finish(self) -> None:
        """Gives the file its name."""
        self._part.replace(self.path)
        self._write(finished=True)
        self.finished = True

    def _write(self, *, finished: bool) -> None:
        record = {
            "settings": self._settings,
            "finished": finished,
            "batches": self.done,
            "bytes": self._bytes,
            "sha256": self._hash.hexdigest(),
            "totals": self.totals,
        }
        replace_file(self._record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            kept = {name: record[name] for name in ("settings", "batches", "bytes", "sha256")}
            return {**kept, "totals": record["totals"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._record} is damaged; remove it and what it is of") from error

    def _resume(self, record: dict[str, Any]) -> None:
        """Takes up what is there; lines that no record speaks of are cut off."""
        whole = self.path if self.path.exists() and not self._part.exists() else self._part
        if differing := _differing(record["settings"], self._settings):
            raise UserError(
                f"{self.path} was begun with {differing}; give the same settings or another name, "
                f"or remove {whole.name} and {self._record.name}"
            )
        data = whole.read_bytes()[: record["bytes"]] if whole.exists() else b""
        self._hash = hashlib.sha256(data)
        if len(data) != record["bytes"] or self._hash.hexdigest() != record["sha256"]:
            raise UserError(
                f"{whole} is not what {self._record.name} says was written; remove both and begin "
                "anew"
            )
        self._bytes, self.done, self.totals = record["bytes"], record["batches"], record["totals"]
        if whole == self.path:
            self._write(finished=True)
            self.finished = True
        elif whole.exists():
            os.truncate(whole, self._bytes)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".record.json")


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that is another one, and both its values."""
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            return f"{name} = {_short(before.get(name))}, and is now {_short(now.get(name))}"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
