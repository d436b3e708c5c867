"""The files of a run's folder, beside its checkpoints.

workdir/config.json               the whole config
workdir/model/                    the Hugging Face layout without weights, and ptjax.json
workdir/checkpoints/<step>/       trained leaves; frozen ones come again from config.model.source
workdir/bad_batch_<step>.npz      what a run stopped at; with several processes one of each
"""

import atexit
import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from ptjax.errors import UserError
from ptjax.models.config_out import write_configs, write_json
from ptjax.models.load import Bundle

RECORD = "ptjax.json"
"""In workdir/model: adapter's settings, head, what more than text the source is of, and how each
tensor of the import was stored."""


def write_model_files(bundle: Bundle, folder: str | os.PathLike[str]) -> None:
    """Writes the Hugging Face layout without its weights, and what a checkpoint needs to be read.

    Args:
      bundle: the model as it is trained.
      folder: local or gs://; made where it does not exist.

    Raises:
      UserError: where it cannot be written.
    """
    if "://" not in os.fspath(folder):
        write_configs(bundle, folder)
        record = {
            "lora": dataclasses.asdict(bundle.model.lora) if bundle.model.lora else None,
            "head": bundle.model.head,
            "part_of": bundle.part_of,
            "tensor_dtypes": {name: str(dtype) for name, dtype in bundle.dtypes.items()},
        }
        write_json(Path(folder) / RECORD, record)
        return
    with tempfile.TemporaryDirectory() as local:
        write_model_files(bundle, local)
        target = epath.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for path in Path(local).iterdir():
            (target / path.name).write_bytes(path.read_bytes())


def keep_batch(
    workdir: str | os.PathLike[str], step: int, columns: Mapping[str, np.ndarray]
) -> str:
    """Writes the rows that this process has of a step's batch; says where the batch is.

    Each of several processes calls it, and writes a file of its own.
    """
    one = jax.process_count() == 1
    name = f"bad_batch_{step}" if one else f"bad_batch_{step}.{jax.process_index()}"
    path = epath.Path(workdir) / f"{name}.npz"
    try:
        with path.open("wb") as file:
            np.savez(file, **dict[str, Any](columns))
    except OSError as error:
        return f"its batch could not be written ({error.strerror or error})"
    if one:
        return f"its batch is in {path}"
    files = f"{path.parent}/bad_batch_{step}.0.npz to .{jax.process_count() - 1}.npz"
    return f"its batch is in {files}, a process's rows each"


def split_source(source: str) -> tuple[str | None, int | None]:
    """The workdir and step that a source names; None where it is no workdir."""
    text = os.fspath(source)
    if _is_workdir(text):
        return text, None
    checkpoint = re.fullmatch(r"(.+)/checkpoints/(\d+)/?", text)
    if checkpoint and _is_workdir(checkpoint[1]):
        raise UserError(
            f"{text} is one checkpoint; did you mean '{checkpoint[1]}@{checkpoint[2]}'?"
        )
    path, _, step = text.rpartition("@")
    if path and _is_workdir(path):
        if not step.isdecimal():
            raise UserError(f"{text}: {step!r} is not a step; write {path}@100 for step 100")
        return path, int(step)
    if "://" in text:
        raise UserError(f"{text}: no run there (it would have config.json and model/)")
    return None, None


def _is_workdir(path: str) -> bool:
    root = epath.Path(path)
    return (root / "config.json").exists() and (root / "model" / RECORD).exists()


def read_object(path: epath.PathLike) -> dict[str, Any]:
    """The contents of a JSON file.

    Raises:
      UserError: where it is not there or not an object.
    """
    path = epath.Path(path)
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name}; is this a run's workdir?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, not an object")
    return found


def local_copy(folder: epath.Path) -> Path:
    """A folder's files as local ones; copied where they are in an object store.

    The copy stays until the process ends: an export takes an unchanged tokenizer's files from it.
    """
    if "://" not in os.fspath(folder):
        return Path(folder)
    copy = Path(tempfile.mkdtemp(prefix="ptjax-model-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy
