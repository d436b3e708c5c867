"""Writes safetensors as a stream: one tensor in memory, each file whole or not there.

A file's layout (order of the tensors, header, padding) is that of the reference implementation, so
a checkpoint that was written by it comes back byte for byte.
"""

import json
import os
import re
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ptjax.errors import UserError
from ptjax.models.weights import DTYPES, Lazy, TensorSource, TensorSpec

_RANK = {dtype: (rank, name) for rank, (name, dtype) in enumerate(DTYPES.items())}


def write_safetensors(
    tensors: Iterable[tuple[str, Any]],
    folder: str | os.PathLike[str],
    *,
    max_shard_bytes: int = 5 * 10**9,
    stem: str = "model",
) -> list[Path]:
    """Writes `{stem}.safetensors`, or numbered shards and their index where it is too large.

    Every file is written under a temporary name and renamed when it is complete; files of an
    earlier export in the same folder are removed last.

    Args:
      tensors: (name, tensor) pairs. A tensor has shape and dtype and becomes a numpy array only
        when its turn comes: np.ndarray, jax.Array or `Lazy`. The pairs are listed first, so a
        generator of numpy arrays would be held in memory: give `Lazy` there.
      folder: made where it does not exist.
      max_shard_bytes: a shard's bound; a larger tensor stands alone in its shard.
      stem: the files' common name.

    Returns:
      The weight files written.

    Raises:
      UserError: for a name given twice, a dtype the format has no code for, a tensor that is not
        what its shape and dtype said, or a file that cannot be written (disk full).
    """
    folder = Path(folder)
    shards = _split(tensors, max_shard_bytes)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    index = folder / f"{stem}.safetensors.index.json"
    made: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, shard in zip(names, shards, strict=True):
            made.append((folder / f".{name}.tmp", folder / name))
            _write_file(made[-1][0], shard)
        if len(shards) > 1:
            made.append((folder / f".{index.name}.tmp", index))
            made[-1][0].write_text(_index_json(names, shards))
        for temporary, final in made:
            os.replace(temporary, final)
        stale = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?")
        for path in folder.iterdir():
            if stale.fullmatch(path.name) and path not in [final for _, final in made]:
                path.unlink()
    except OSError as error:
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        size = sum(_spec(tensor).nbytes for shard in shards for tensor in shard.values())
        raise UserError(
            f"{folder}: cannot write the weights: {error.strerror} ({size:,} bytes of tensors, "
            f"{free:,} bytes free); free space or choose another folder"
        ) from error
    finally:
        for temporary, _ in made:
            temporary.unlink(missing_ok=True)
    return [folder / name for name in names]


def stream(source: TensorSource) -> Iterable[tuple[str, Lazy]]:
    """The tensors of a source, for `write_safetensors`."""
    for name, spec in source.specs().items():
        yield name, Lazy(*spec, lambda name=name: source.read(name))


def _spec(tensor: Any) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), np.dtype(tensor.dtype))


def _split(tensors: Iterable[tuple[str, Any]], max_shard_bytes: int) -> list[dict[str, Any]]:
    """Fills shards in the order given."""
    shards: list[dict[str, Any]] = [{}]
    seen: set[str] = set()
    size = 0
    for name, tensor in tensors:
        spec = _spec(tensor)
        if name in seen:
            raise UserError(f"export: tensor {name!r} is given twice")
        if spec.dtype not in _RANK:
            raise UserError(f"export: tensor {name!r}: safetensors has no dtype {spec.dtype}")
        seen.add(name)
        if shards[-1] and size + spec.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += spec.nbytes
    return shards


def _write_file(path: Path, tensors: dict[str, Any]) -> None:
    specs = {name: _spec(tensor) for name, tensor in tensors.items()}
    order = sorted(specs, key=lambda name: (-_RANK[specs[name].dtype][0], name.encode()))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        spec = specs[name]
        header[name] = {
            "dtype": _RANK[spec.dtype][1],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            array = np.asarray(tensors[name])
            if _spec(array) != specs[name]:
                raise UserError(
                    f"export: tensor {name!r} is {array.shape} {array.dtype}, "
                    f"announced as {specs[name].shape} {specs[name].dtype}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _index_json(names: list[str], shards: list[dict[str, Any]]) -> str:
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    specs = [_spec(tensor) for shard in shards for tensor in shard.values()]
    total = {
        "total_parameters": sum(int(np.prod(spec.shape)) for spec in specs),
        "total_size": sum(spec.nbytes for spec in specs),
    }
    return json.dumps({"metadata": total, "weight_map": where}, indent=2, sort_keys=True) + "\n"
