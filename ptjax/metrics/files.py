"""The files behind a run's metrics: JSON lines that survive a kill, and copies in object stores."""

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
WANDB = "wandb.json"
_log = logging.getLogger(__name__)


def read_rows(workdir: str | os.PathLike[str], name: str = METRICS) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` (or `samples.jsonl`); none where there is no file."""
    if "://" not in str(workdir):
        return rows_of(Path(workdir) / name)
    with tempfile.TemporaryDirectory() as folder:
        download(str(workdir), Path(folder))
        return rows_of(Path(folder) / name)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; what cannot be read is counted in one warning."""
    if not path.exists():
        return []
    found, unread = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            found.append(row)
        else:
            unread += 1
    if unread:
        _log.warning("%s: %d line(s) cannot be read and are left out", path, unread)
    return found


def cut_torn_line(path: Path) -> None:
    """Cuts off a last line that has no newline, so that the next line starts on its own."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def replace_file(path: Path, text: str) -> None:
    """Writes a file in one piece: a kill leaves the old one or the new one."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def download(remote: str, folder: Path) -> None:
    """Fetches the files that a resumed run continues."""
    from etils import epath

    for name in (METRICS, SAMPLES, WANDB):
        source = epath.Path(remote) / name
        if source.exists():
            (folder / name).write_bytes(source.read_bytes())


def upload(folder: Path, remote: str) -> None:
    """Copies every file of a folder to an object store."""
    from etils import epath

    for path in folder.rglob("*"):
        if path.is_file():
            target = epath.Path(remote) / path.relative_to(folder).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
