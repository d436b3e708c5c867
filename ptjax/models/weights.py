"""Tensors of a checkpoint under their Hugging Face names: read one at a time, written as a stream.

The safetensors format is eight bytes of header length (little endian), a JSON header
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, and the tensors' bytes with no gaps.
Everything the header says is checked against the file's size before any tensor is read.
"""

import json
import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from ptjax.errors import UserError

Index = tuple[slice, ...]

# In the order of the reference implementation, which lays tensors out by descending dtype.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
MAX_HEADER = 100_000_000


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """The tensor's size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class TensorSource(Protocol):
    """One checkpoint's tensors under Hugging Face names, read one at a time."""

    @property
    def origin(self) -> str:
        """Where the tensors come from, for messages."""
        ...

    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every tensor, in the checkpoint's order."""
        ...

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a copy of the tensor, or of `tensor[index]`; nothing else stays in memory."""
        ...


@dataclass(frozen=True)
class Without:
    """A source with one of its tensors left out."""

    source: TensorSource
    hidden: str
    origin: str

    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every other tensor."""
        return {name: spec for name, spec in self.source.specs().items() if name != self.hidden}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a copy of the tensor, or of `tensor[index]`."""
        return self.source.read(name, index)


class Lazy(NamedTuple):
    """A tensor for `write_safetensors` that is made when its turn to be written comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    get: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.get(), dtype=dtype)


class Slot(NamedTuple):
    """Where one tensor's bytes lie."""

    path: Path
    spec: TensorSpec
    offset: int


@dataclass(frozen=True)
class SafetensorsSource:
    """Tensors of one or more validated safetensors files."""

    origin: str
    slots: dict[str, Slot]

    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every tensor, in the checkpoint's order."""
        return {name: slot.spec for name, slot in self.slots.items()}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a copy of the tensor, or of `tensor[index]`; only the pages it needs are read."""
        path, spec, offset = self.slots[name]
        if spec.nbytes == 0:
            return np.empty(spec.shape, spec.dtype)[index or ()]
        try:
            view = np.memmap(path, spec.dtype, "r", offset, spec.shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read tensor {name!r}: {error}") from error
        return np.array(view[index or ()])


def open_safetensors(folder: str | os.PathLike[str], *, stem: str = "model") -> SafetensorsSource:
    """Opens `folder/{stem}.safetensors`, or the shards that `{stem}.safetensors.index.json` names.

    Args:
      folder: a local folder.
      stem: the files' common name; `adapter_model` for a PEFT folder.

    Raises:
      UserError: naming file and tensor, for a truncated or corrupt file, a missing shard, a path
        that leaves the folder, a tensor that is named twice, missing or unlisted, a dtype that
        is not known.
    """
    folder = Path(folder)
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return SafetensorsSource(str(single), read_header(single))
    if not index.is_file():
        pickled = sorted(p.name for p in folder.glob("*.bin")) if folder.is_dir() else []
        hint = f" (it has {pickled[0]}: convert it, pickles are never loaded)" if pickled else ""
        raise UserError(f"{folder}: neither {single.name} nor {index.name} is there{hint}")
    listed = _read_index(index)
    slots: dict[str, Slot] = {}
    for shard in sorted(set(listed.values())):
        if not (folder / shard).is_file():
            raise UserError(f"{index}: shard {shard!r} is missing")
        for name, slot in read_header(folder / shard).items():
            if name in slots:
                raise UserError(f"{slot.path}: tensor {name!r} is also in {slots[name].path.name}")
            if listed.get(name) != shard:
                raise UserError(f"{slot.path}: {index.name} does not list tensor {name!r} here")
            slots[name] = slot
    for name, shard in listed.items():
        if name not in slots:
            raise UserError(f"{folder / shard}: tensor {name!r} of {index.name} is not in it")
    return SafetensorsSource(str(index), slots)


def read_header(path: Path) -> dict[str, Slot]:
    """Reads and validates one file's header.

    Raises:
      UserError: with the file, the tensor and the reason.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise UserError(f"{path}: truncated or not a safetensors file ({size} bytes)")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    start = 8 + length
    slots = {}
    for name, entry in _parse_json(text, path).items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
                raise UserError(f"{path}: corrupt header: __metadata__ is not a table of strings")
            continue
        slots[name] = _slot(path, name, entry, start)
    end = start
    for name, slot in sorted(slots.items(), key=lambda s: (s[1].offset, s[1].spec.nbytes)):
        if slot.offset != end:
            raise UserError(f"{path}: tensor {name!r} starts at byte {slot.offset}, not at {end}")
        end += slot.spec.nbytes
    if end != size:
        what = "truncated" if end > size else "has trailing bytes"
        raise UserError(f"{path}: {what}: {size} bytes, its header describes {end}")
    return dict(sorted(slots.items(), key=lambda s: s[1].offset))


def _slot(path: Path, name: str, entry: Any, start: int) -> Slot:
    """One header entry, checked for its own consistency."""
    where = f"{path}: corrupt header: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where} needs dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise UserError(f"{path}: tensor {name!r} has unsupported dtype {entry['dtype']!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise UserError(f"{where} has a bad shape or bad offsets")
    spec = TensorSpec(tuple(shape), dtype)
    if len(shape) > 32 or spec.nbytes != offsets[1] - offsets[0]:
        raise UserError(f"{where}: shape {shape} and offsets {offsets} disagree")
    return Slot(path, spec, start + offsets[0])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _read_index(path: Path) -> dict[str, str]:
    """The index's table, tensor name -> shard file name, each a plain name in the same folder."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    listed = _parse_json(text, path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{path}: no weight_map in it")
    for name, shard in listed.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0:]+\.safetensors", shard):
            raise UserError(f"{path}: tensor {name!r}: {shard!r} is not a file of this folder")
    return listed


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(items)
        if len(table) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}: {twice!r} is named twice")
        return table

    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: corrupt JSON: {str(error)[:120]}") from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: corrupt JSON: not a table")
    return table
