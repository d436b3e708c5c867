"""The folder of an export: whose it is, and what an earlier export left in it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from ptjax.errors import UserError
from ptjax.models.config_out import write_json
from ptjax.writable import check_folder

RECORD = "ptjax_export.json"
"""Marks a folder as an export of ours, which a later one may replace."""

_NOT_THE_TOKENIZERS = ("config.json", "generation_config.json", "adapter_config.json")


def check(folder: Path) -> None:
    """Raises UserError where the folder holds what is no export of ours, or cannot be written."""
    if "://" in str(folder) or ":/" in str(folder):
        raise UserError(f"{folder}: export to a local folder, and copy it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; an export is a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise UserError(f"{folder} is not empty and not an earlier export; name another folder")
    check_folder(folder, "folder")


@contextlib.contextmanager
def writing(folder: Path, *, kind: str, source: str, tokenizer: str) -> Iterator[None]:
    """Marks the folder while it is written, and removes what only an earlier export had.

    Args:
      folder: the export.
      kind: recorded.
      source: recorded.
      tokenizer: where the tokenizer came from; in this folder its files stay as they are.
    """
    record = folder / RECORD
    before = _files(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    marked = {"source": source, "kind": kind, "complete": False, "files": before}
    write_json(record, marked)
    started = {name: _stamp(folder / name) for name in before}
    yield
    own = bool(tokenizer) and Path(tokenizer).resolve() == folder.resolve()
    for name in before:
        path = folder / name
        untouched = path.is_file() and _stamp(path) == started[name]
        if untouched and (not own or name in _NOT_THE_TOKENIZERS or name.endswith(".safetensors")):
            path.unlink()
    files = sorted(path.name for path in folder.iterdir() if path != record)
    write_json(record, {**marked, "complete": True, "files": files})


def _files(record: Path) -> list[str]:
    try:
        found = json.loads(record.read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    names = found if isinstance(found, list) else []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever a file is written or replaced."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_ino
    return None
