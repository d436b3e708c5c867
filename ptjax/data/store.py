"""Encoded sequences on disk: flat arrays that are memory-mapped, checked when opened.

A store is a folder of `.npy` files with `store.json`, which is written last. It comes into being
by a rename: a folder that is there is whole unless the disk damaged it; sizes and checksums tell.
"""

import functools
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

VERSION = 5
FIELDS = {
    "tokens": np.dtype(np.int32),
    "mask": np.dtype(bool),
    "lengths": np.dtype(np.int32),
    "rows": np.dtype(np.int64),
    "keys": np.dtype(np.uint64),
    "examples": np.dtype(np.int64),
    "prompts": np.dtype(np.int32),
    "scores": np.dtype(np.float32),
    "margins": np.dtype(np.float32),
    "labels": np.dtype(np.float32),
}
"""Flat `tokens` and `mask`, and for steps `labels`. By sequence its `lengths`, its row's number, a
hash of what keeps rows together when some are held out, the number of its example, the tokens of
its prompt, its score, and its example's margin."""


class Store:
    """The sequences of one source.

    Raises:
      OSError, ValueError, KeyError: the folder is not a whole store.

    """

    def __init__(self, folder: str, *, verify: bool = True):
        self.folder = folder
        with open(os.path.join(folder, "store.json"), encoding="utf-8") as file:
            self.meta: dict[str, Any] = json.load(file)
        if self.meta["version"] != VERSION:
            raise ValueError(f"{folder}: another version")
        arrays = {}
        for name, dtype in FIELDS.items():
            path = os.path.join(folder, f"{name}.npy")
            size, checksum = self.meta["files"][name]
            if verify and (os.path.getsize(path) != size or _checksum(path) != checksum):
                raise ValueError(f"{path}: damaged")
            array = np.load(path, mmap_mode="r" if size > 4096 else None, allow_pickle=False)
            if array.dtype != dtype:
                raise ValueError(f"{path}: {array.dtype}, not {dtype}")
            arrays[name] = array
        self.tokens: np.ndarray = arrays["tokens"]
        self.mask: np.ndarray = arrays["mask"]
        self.lengths: np.ndarray = np.asarray(arrays["lengths"])
        self.rows: np.ndarray = np.asarray(arrays["rows"])
        self.keys: np.ndarray = np.asarray(arrays["keys"])
        self.examples: np.ndarray = np.asarray(arrays["examples"])
        self.prompts: np.ndarray = np.asarray(arrays["prompts"])
        self.scores: np.ndarray = np.asarray(arrays["scores"])
        self.margins: np.ndarray = np.asarray(arrays["margins"])
        self.labels: np.ndarray = arrays["labels"]
        self.starts: np.ndarray = np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def __reduce__(self):
        return functools.partial(Store, verify=False), (self.folder,)


class Writer:
    """Writes a store sequence by sequence, in a temporary folder beside its place."""

    def __init__(self, folder: str):
        self._folder = folder
        parent = os.path.dirname(folder) or "."
        os.makedirs(parent, exist_ok=True)
        self._temporary = tempfile.mkdtemp(prefix=".writing-", dir=parent)
        self._columns = {name: _Column(self._path(name), FIELDS[name]) for name in FIELDS}

    def _path(self, name: str) -> str:
        return os.path.join(self._temporary, f"{name}.npy")

    def add(self, **columns: Any) -> None:
        """Appends to each of `FIELDS`."""
        for name, values in columns.items():
            self._columns[name].append(np.asarray(values))

    def commit(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Closes the files, writes `store.json` and puts the folder in its place.

        Returns:
          What stands in `store.json`.
        """
        files = {}
        for name, column in self._columns.items():
            column.close()
            files[name] = [os.path.getsize(self._path(name)), _checksum(self._path(name))]
        meta = {**meta, "version": VERSION, "files": files}
        path = os.path.join(self._temporary, "store.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(meta, file)
            file.flush()
            os.fsync(file.fileno())
        if os.path.isdir(self._folder):
            shutil.rmtree(self._folder)
        try:
            os.rename(self._temporary, self._folder)
        except OSError:
            if not os.path.isdir(self._folder):
                raise
            self.abandon()
        return meta

    def abandon(self) -> None:
        """Removes what was written."""
        for column in self._columns.values():
            column.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


class _Column:
    """One `.npy` file of unknown length: its header is written anew at the end."""

    def __init__(self, path: str, dtype: np.dtype):
        self._file: BinaryIO = open(path, "wb+")
        self._dtype = dtype
        self._length = 0
        self._file.write(_header(dtype, 0))

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self._length += values.size

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._file.write(_header(self._dtype, self._length))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _header(dtype: np.dtype, length: int) -> bytes:
    """A `.npy` header; numpy leaves room in it for the length to grow."""
    buffer = io.BytesIO()
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": description, "fortran_order": False, "shape": (length,)}
    )
    return buffer.getvalue()


def together(parts: Sequence[Sequence[int]], dtype: np.dtype) -> list[int]:
    """Size and checksum of a field's file, from those of files that hold it one after the other."""
    begin = len(_header(dtype, 0))
    sizes = [size - begin for size, _ in parts]
    checksum = zlib.crc32(_header(dtype, sum(sizes) // dtype.itemsize))
    for size, (_, whole) in zip(sizes, parts, strict=True):
        before = zlib.crc32(_header(dtype, size // dtype.itemsize))
        checksum = _moved(checksum, size) ^ _moved(before, size) ^ whole
    return [begin + sum(sizes), checksum]


def _moved(checksum: int, size: int) -> int:
    """The part that bytes have in the CRC-32 of themselves and `size` more; the rest is xored.

    A CRC is a remainder of polynomials over two elements: it is multiplied by x^(8 size).
    """
    power = 1 << 23  # x^8; the bits are reflected, 1 is the highest
    while size:
        if size & 1:
            checksum = _product(checksum, power)
        power = _product(power, power)
        size >>= 1
    return checksum


def _product(one: int, other: int) -> int:
    """Of two polynomials, modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (0xEDB88320 if other & 1 else 0)
    return product


def _checksum(path: str) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
