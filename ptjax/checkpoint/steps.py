"""Folders of steps: which exist, which are committed, which verify."""

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from etils import epath

from ptjax.checkpoint import manifest as manifest_lib
from ptjax.checkpoint.manifest import BadStep, FileEntry, Manifest
from ptjax.checkpoint.storage import INCOMPLETE, SET_ASIDE, Storage
from ptjax.errors import UserError
from ptjax.writable import check_folder

FOLDER = "checkpoints"
_NAME = re.compile(r"(\d+)(?:\.([a-z]+)(?:-\d+)?)?")
_CHUNK = 4 << 20
_OUTSIDE = {manifest_lib.NAME, manifest_lib.NAME + ".tmp", INCOMPLETE, SET_ASIDE}


@dataclass(frozen=True)
class Step:
    """One folder of a step, looked at without hashing."""

    step: int
    folder: epath.Path
    kind: Literal["committed", "bad", "aside", "debris"]
    """committed: has a manifest that parses. bad: had one. aside: taken out of the way. debris: a
    save or a deletion that was cut short, or an empty folder: no step at all."""
    manifest: Manifest | None = None
    reason: str = ""
    lasting: bool = True


def root_of(workdir: str | os.PathLike[str]) -> epath.Path:
    """Returns the folder that holds a workdir's steps, as an absolute path.

    Raises:
      UserError: for a scheme that is unknown.

    """
    text = os.fspath(workdir)
    if "://" in text:
        try:
            return epath.Path(text) / FOLDER
        except KeyError:
            raise UserError(f"{text}: neither a folder nor an object store known here") from None
    return epath.Path(os.path.abspath(os.path.expanduser(text))) / FOLDER


def folder_of(root: epath.Path, step: int) -> epath.Path:
    """Returns the folder of a step."""
    return root / f"{step:08d}"


def reach(root: epath.Path) -> bool:
    """Returns whether anything is there yet.

    Raises:
      UserError: for an object store whose client is not installed, or that lets nobody in.

    """
    try:
        return root.exists()
    except Exception as error:  # each store's client has errors of its own
        if "://" not in os.fspath(root):
            raise
        raise UserError(f"{root} cannot be reached: {error}") from error


def check_workdir(workdir: str | os.PathLike[str]) -> None:
    """Refuses a workdir that no run can be kept in: quick, and before anything is loaded.

    Whether an object store lets itself be written is not asked.

    Raises:
      UserError: a folder that cannot be made or written in, a store that cannot be reached.

    """
    root = root_of(workdir)
    if "://" in os.fspath(workdir):
        reach(root)
    else:
        check_folder(workdir, "workdir")


def scan(root: epath.Path) -> list[Step]:
    """Returns every folder of a step, oldest first; hashes nothing.

    Raises:
      UserError: for an object store that cannot be reached.

    """
    if not reach(root):
        return []
    found = [(match, path) for path in root.iterdir() if (match := _NAME.fullmatch(path.name))]
    steps = [_look(int(match[1]), path, renamed=match[2] is not None) for match, path in found]
    return sorted(steps, key=lambda step: (step.step, step.folder.name))


def _look(step: int, folder: epath.Path, *, renamed: bool) -> Step:
    if renamed or (folder / SET_ASIDE).exists():
        return Step(step, folder, "aside", reason=_why_aside(folder))
    try:
        if not folder.is_dir():
            raise BadStep("not a folder")
        names = {path.name for path in folder.iterdir()}
        if manifest_lib.NAME in names:
            return Step(step, folder, "committed", read_manifest(folder))
        if not names or INCOMPLETE in names:
            return Step(step, folder, "debris", reason="a save that was cut short")
        raise BadStep(f"{manifest_lib.NAME} is missing")
    except BadStep as error:
        return Step(step, folder, "bad", reason=str(error), lasting=error.lasting)
    except OSError as error:
        return Step(step, folder, "bad", reason=f"cannot be read ({error})", lasting=False)


def _why_aside(folder: epath.Path) -> str:
    try:
        return str(json.loads((folder / SET_ASIDE).read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "set aside, reason not recorded"


def read_manifest(folder: epath.Path) -> Manifest:
    """Reads and checks a step's manifest; the files it lists are not looked at.

    Raises:
      BadStep: where the manifest is damaged or belongs to another step.

    """
    try:
        text = (folder / manifest_lib.NAME).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadStep(f"{manifest_lib.NAME} does not parse ({error})") from error
    manifest = manifest_lib.parse(text)
    if manifest.step != int(folder.name):
        raise BadStep(f"{manifest_lib.NAME} is of step {manifest.step}")
    return manifest


def entries(folder: epath.Path) -> dict[str, FileEntry]:
    """Returns size and SHA-256 of every file below a step's folder, but for the manifest itself."""
    paths = [path for path in _files(folder) if path not in _OUTSIDE]
    return dict(zip(paths, _hash_all([folder / path for path in paths]), strict=True))


def check_sizes(folder: epath.Path, manifest: Manifest) -> None:
    """Raises BadStep for a listed file that is missing or of another size; reads no content."""
    for path, entry in manifest.files.items():
        try:
            size = (folder / path).stat().length
        except FileNotFoundError as error:
            raise BadStep(f"{path} is missing") from error
        if size != entry.size:
            raise BadStep(f"{path} has {size} bytes, not {entry.size}")


def verify(step: Step, storage: Storage | None = None) -> Manifest:
    """Reads every file of a committed step and compares it with the manifest.

    Args:
      step: what `scan` says of the folder.
      storage: where given, files are read from the medium and not from the page cache.

    Raises:
      BadStep: with the first file that differs.

    """
    if step.manifest is None:
        raise BadStep(step.reason, lasting=step.lasting)
    try:
        check_sizes(step.folder, step.manifest)
        paths = [step.folder / path for path in step.manifest.files]
        if storage is not None:
            for path in paths:
                storage.forget(path)
        for path, found in zip(step.manifest.files, _hash_all(paths), strict=True):
            if found != step.manifest.files[path]:
                raise BadStep(f"{path}: SHA-256 differs from the manifest")
    except FileNotFoundError as error:
        raise BadStep(f"{error.filename} is missing") from error
    except OSError as error:
        raise BadStep(f"cannot be read ({error})", lasting=False) from error
    return step.manifest


def _files(folder: epath.Path, prefix: str = "") -> list[str]:
    found: list[str] = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = prefix + path.name
        found += _files(path, name + "/") if path.is_dir() else [name]
    return found


def _hash_all(paths: list[epath.Path]) -> list[FileEntry]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(_hash, paths))


def _hash(path: epath.Path) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size, digest.hexdigest())
