"""Where steps are kept: a disk, which renames and fsyncs, or an object store, which does neither.

On a disk a file is committed by fsync and rename, in an object store by being written whole.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable

from etils import epath

SET_ASIDE = "set-aside.json"
INCOMPLETE = "incomplete"


class Disk:
    """A local or mounted file system."""

    def write(self, path: epath.Path, text: str) -> None:
        """Writes a text, and fsyncs."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def commit(self, path: epath.Path, text: str, pause: Callable[[str], None]) -> None:
        """Writes a file whole or not at all: temporary, fsync, rename, fsync of the folder.

        Calls pause("manifest-tmp") before the rename.
        """
        temporary = path.with_name(path.name + ".tmp")
        self.write(temporary, text)
        pause("manifest-tmp")
        os.replace(temporary, path)
        _fsync(path.parent)

    def sync(self, folder: epath.Path) -> None:
        """Returns when all below the folder, and its own entry, would survive a loss of power."""
        for current, _, files in os.walk(folder, topdown=False):
            for name in files:
                _fsync(os.path.join(current, name))
            _fsync(current)
        _fsync(folder.parent)

    def uncommit(self, manifest: epath.Path) -> None:
        """Turns a committed step into debris by renaming its manifest to the marker of one."""
        os.replace(manifest, manifest.with_name(INCOMPLETE))
        _fsync(manifest.parent)

    def set_aside(self, folder: epath.Path, kind: str, reason: str) -> epath.Path:
        """Renames a folder to `folder.kind`, writes the reason into it, returns where it is."""
        target, number = folder.with_name(f"{folder.name}.{kind}"), 1
        while os.path.lexists(target):
            number += 1
            target = folder.with_name(f"{folder.name}.{kind}-{number}")
        os.rename(folder, target)
        if os.path.isdir(target):
            self.write(target / SET_ASIDE, json.dumps({"kind": kind, "reason": reason}))
        _fsync(folder.parent)
        return target

    def forget(self, path: epath.Path) -> None:
        """Drops the file's pages from the page cache: the next read comes from the medium."""
        if hasattr(os, "posix_fadvise"):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def free(self, folder: epath.Path) -> int | None:
        """Bytes free for this user on the folder's file system, where that can be asked."""
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            return None


class Bucket:
    """An object store: a file appears when it is written whole, and cannot be renamed."""

    def write(self, path: epath.Path, text: str) -> None:
        """Writes the object."""
        path.write_text(text)

    def commit(self, path: epath.Path, text: str, pause: Callable[[str], None]) -> None:
        """Writes the object, which is what commits."""
        pause("manifest-tmp")
        path.write_text(text)

    def sync(self, folder: epath.Path) -> None:
        """An object that was written is durable."""

    def uncommit(self, manifest: epath.Path) -> None:
        """Marks the step as incomplete, then deletes the manifest."""
        self.write(manifest.with_name(INCOMPLETE), "")
        manifest.unlink()

    def set_aside(self, folder: epath.Path, kind: str, reason: str) -> epath.Path:
        """Writes a marker with the reason into the folder."""
        self.write(folder / SET_ASIDE, json.dumps({"kind": kind, "reason": reason}))
        return folder

    def forget(self, path: epath.Path) -> None:
        """A read goes to the store in any case."""

    def free(self, folder: epath.Path) -> int | None:
        """Not known."""
        return None


Storage = Disk | Bucket


def storage_of(root: epath.Path) -> Storage:
    """Returns the storage that a path such as /runs/a or gs://bucket/a lives on."""
    return Bucket() if "://" in os.fspath(root) else Disk()


def is_full(error: BaseException | None) -> bool:
    """True where an error, or what caused it, says that the disk or the quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(word in str(error) for word in ("ENOSPC", "No space left", "EDQUOT", "EFBIG")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fsync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
