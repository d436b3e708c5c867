"""An object store made of files: `gs://` for fsspec and for Orbax, and no network.

Objects are files below a folder. As in a bucket there is no rename, a folder is there only while
something is in it, and a listing is remembered until this client writes or deletes below it:
arrays, which Orbax writes by a client of its own, do not renew it.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils


class Bucket(LocalFileSystem):
    """What `gcsfs` is to etils."""

    cachable = False
    folder = ""
    """Holds every bucket's objects."""

    def __init__(self) -> None:
        super().__init__()
        self.listings: dict[str, list[dict[str, Any]]] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        text = os.fspath(path)
        if text.startswith("gs://"):
            text = os.path.join(cls.folder, text.removeprefix("gs://"))
        return super()._strip_protocol(text)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: folders are made by what is put into them."""

    makedirs = mkdir

    def mv(self, *_: Any, **__: Any) -> None:
        raise AssertionError("an object store has no rename")

    def ls(self, path: Any, detail: bool = False, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if path not in self.listings:
            self.listings[path] = super().ls(path, detail=True)
        return [found if detail else found["name"] for found in self.listings[path]]

    def glob(self, path: Any, **_: Any) -> list[str]:
        found = super().glob(self._strip_protocol(path))
        return [name.removeprefix(f"{self.folder}/") for name in found]

    def info(self, path: Any, **_: Any) -> dict[str, Any]:
        if not isinstance(path, os.DirEntry):
            path = self._strip_protocol(path)
            for known in self.listings.get(self._parent(path), ()):
                if known["name"] == path:
                    return known
        return super().info(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        super().rm(path, recursive=recursive, maxdepth=maxdepth)
        below = f"{self._strip_protocol(path)}/"
        self.listings = {k: v for k, v in self.listings.items() if not k.startswith(below)}
        self._changed(path)
        folder = self._parent(path)
        while folder != self.folder and not os.listdir(folder):
            os.rmdir(folder)
            folder = self._parent(folder)

    def _open(self, path: Any, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            os.makedirs(self._parent(path), exist_ok=True)
            self._changed(path)
        return super()._open(path, mode, **options)

    def _changed(self, path: Any) -> None:
        path = self._strip_protocol(path)
        while len(path) >= len(self.folder):
            self.listings.pop(path, None)
            path = self._parent(path)


def use(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keeps what lies at `gs://` below a folder, for as long as the patch lasts."""
    bucket = Bucket()
    patch.setattr(Bucket, "folder", str(folder))
    patch.setattr(type(fsspec_backend), "_get_filesystem", lambda self, name: bucket)
    patch.setattr(
        gcs_utils,
        "get_kvstore_for_gcs",
        lambda path: {"driver": "file", "path": Bucket._strip_protocol(path)},
    )
