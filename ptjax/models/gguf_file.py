"""The GGUF container: metadata and a table of tensors, every length checked against the file.

Layout (little endian): magic, version, number of tensors, number of key-values; the key-values;
for each tensor name, dimensions (fastest first), type, offset; padding; the tensors' bytes.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ptjax.errors import UserError

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


class GGUFTensor(NamedTuple):
    """One tensor as it is stored: `shape` in row-major order, `kind` a GGMLQuantizationType."""

    shape: tuple[int, ...]
    kind: int
    offset: int
    nbytes: int


class GGUFFile(NamedTuple):
    """A GGUF file's metadata and where its tensors lie."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


class _Damage(Exception):
    """What is wrong with the file; becomes a UserError with its path."""


@dataclass
class _Cursor:
    """Takes values off the front of the file's bytes and never reads past their end."""

    data: np.ndarray
    at: int = 0

    def take(self, count: int) -> np.ndarray:
        if count > self.data.size - self.at:
            raise _Damage(f"truncated at byte {self.data.size}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)).tobytes())[0]

    def string(self) -> str:
        return _text(self.take(self.number("Q")).tobytes(), self.at)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise _Damage(f"unknown value type {kind} before byte {self.at}")
        dtype = np.dtype(_SCALARS[kind])
        value = self.take(dtype.itemsize).view(dtype)[0]
        return _short(value) if dtype == np.float32 else value.item()

    def array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return self.take(count * dtype.itemsize).view(dtype).copy()
        if kind != _STRING:
            raise _Damage(f"array of unknown type {kind} before byte {self.at}")
        return self.strings(count)

    def strings(self, count: int) -> list[str]:
        """A vocabulary is 10^5 strings: one loop over bytes, with no arrays in it."""
        if count * 8 > self.data.size - self.at:
            raise _Damage(f"truncated at byte {self.data.size}")
        buffer, at, end = self.data.data, self.at, self.data.size
        strings = []
        for _ in range(count):
            start = at + 8
            at = start + int.from_bytes(buffer[at:start], "little")
            if at > end:
                raise _Damage(f"truncated at byte {end}")
            strings.append(_text(buffer[start:at].tobytes(), at))
        self.at = at
        return strings


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Reads a GGUF file's header; no tensor is read.

    Args:
      path: a .gguf file, version 2 or 3, little endian.

    Raises:
      UserError: where the file is no GGUF file, is truncated or contradicts itself.
    """
    path = Path(path)
    try:
        if path.stat().st_size < 24:
            raise _Damage("truncated, or not a GGUF file")
        cursor = _Cursor(np.memmap(path, np.uint8, "r"))
        metadata, tensors = _read(cursor)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except _Damage as error:
        raise UserError(f"{path}: {error}") from error
    return GGUFFile(path, metadata, tensors)


def read_tensor(file: GGUFFile, name: str, rows: slice | None = None) -> np.ndarray:
    """Dequantises one tensor, or a slice of its first axis, to float32; a copy.

    Raises:
      UserError: where the tensor's type cannot be dequantised.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    shape, kind, offset, nbytes = file.tensors[name]
    lines = math.prod(shape[:-1])
    if nbytes == 0:
        return np.empty(shape, np.float32)[() if rows is None else rows]
    try:
        stored = np.memmap(file.path, np.uint8, "r", offset, (lines, nbytes // lines))
        if rows is not None and len(shape) > 1:
            stored = stored.reshape(shape[0], -1, stored.shape[1])[rows]
            shape, rows = (len(stored), *shape[1:]), None
            stored = stored.reshape(-1, stored.shape[2])
        quantized = np.ascontiguousarray(stored)
        with np.errstate(all="ignore"):  # damaged scales may be NaN; the model's guards see them
            values = dequantize(quantized, GGMLQuantizationType(kind)).reshape(shape)
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{file.path}: cannot read tensor {name!r}: {error}") from error
    return np.array(values if rows is None else values[rows], np.float32)


def _read(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    if cursor.take(4).tobytes() != b"GGUF":
        raise _Damage("not a GGUF file")
    version, n_tensors, n_values = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3):
        raise _Damage(f"GGUF version {version} is not supported (2 and 3 are)")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.string()
        if key in metadata:
            raise _Damage(f"key {key!r} is there twice")
        metadata[key] = cursor.value(cursor.number("I"))
    rows = []
    for _ in range(n_tensors):
        name, rank = cursor.string(), cursor.number("I")
        if rank > 4:
            raise _Damage(f"tensor {name!r} has {rank} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(rank))[::-1]
        rows.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Damage(f"bad alignment {alignment}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, kind, offset in rows:
        if name in tensors:
            raise _Damage(f"tensor {name!r} is there twice")
        nbytes = _nbytes(name, shape, kind)
        if offset % alignment or start + offset + nbytes > cursor.data.size:
            raise _Damage(f"truncated: tensor {name!r} does not lie within the file")
        tensors[name] = GGUFTensor(shape, kind, start + offset, nbytes)
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda t: t[1].offset):
        if tensor.offset < end:
            raise _Damage(f"tensor {name!r} overlaps another")
        end = tensor.offset + tensor.nbytes
    return metadata, tensors


def _nbytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise _Damage(f"tensor {name!r} has unknown type {kind}") from error
    if (shape[-1] if shape else 1) % block:
        raise _Damage(f"tensor {name!r}: a row of {shape[-1]} is no multiple of {block}")
    return math.prod(shape) // block * size


def _text(raw: bytes, at: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Damage(f"a string before byte {at} is not UTF-8") from error


def _short(value: np.floating) -> float:
    """A float32 as the decimal that was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(value))
