"""The reference's log-probs of a whole data set, computed once and kept beside the encoded data."""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ptjax import sharding
from ptjax.data import Pipeline
from ptjax.data.examples import Examples
from ptjax.data.ragged import Ragged
from ptjax.errors import UserError
from ptjax.hosts import exchange
from ptjax.models.fingerprint import fingerprint
from ptjax.types import Batch, Outputs, Params

_log = logging.getLogger("ptjax")
_MISMATCHED = "kl_"


def attach(
    pipeline: Pipeline,
    reference: Callable[[Params, Batch], Outputs],
    params: Params,
    mesh: Mesh,
    identity: Any,
) -> None:
    """Gives every batch its `ref_logps` (and `kl_ref_logps`) from a file, made where there is none.

    Processes may have a folder each or share one: they compute together unless all have the file,
    and then keep it where it is missing.

    Args:
      pipeline: its batches get the columns.
      reference: `(params, batch) -> Outputs` with `logps`, jitted.
      params: the reference's leaves.
      mesh: where batches go.
      identity: what else the numbers depend on: the model's config, dtypes.

    Raises:
      UserError: the file cannot be written.
    """
    weights = [identity, fingerprint(params)]
    for part in (pipeline.examples, pipeline.held_out):
        if part is None:
            continue
        key = hashlib.sha256(repr([weights, part.identity()]).encode()).hexdigest()[:32]
        names, lengths = [""], [part.lengths]
        if part.mismatched is not None:
            names, lengths = ["", _MISMATCHED], [part.lengths, part.mismatched.lengths]
        path = Path(pipeline.cache) / f"ref-logps-{key}.npy"
        flat = _read_by_all(path, sum(int(one.sum()) for one in lengths))
        if flat is None:
            made = _compute(pipeline, part, names, lengths, reference, params, mesh)
            flat = np.concatenate([one.values for one in made])
            _keep(path, flat)
        ends = np.cumsum([int(one.sum()) for one in lengths])
        parts = np.split(flat, ends[:-1])
        pipeline.add_columns(
            part,
            {
                f"{name}ref_logps": Ragged.of(values, sizes)
                for name, values, sizes in zip(names, parts, lengths, strict=True)
            },
        )


def _compute(
    pipeline: Pipeline,
    examples: Examples,
    names: list[str],
    lengths: list[np.ndarray],
    reference: Callable[[Params, Batch], Outputs],
    params: Params,
    mesh: Mesh,
) -> list[Ragged]:
    """One pass over the examples, of all processes together."""
    from ptjax.progress import Progress

    made = [Ragged.empty(one) for one in lengths]
    batches = pipeline.once(examples)
    with Progress(len(batches), unit="reference batch", quiet=jax.process_index() > 0) as bar:
        for step, batch in enumerate(batches, 1):
            numbers = {"examples": np.asarray(batch.examples, np.int32)}
            columns = sharding.put_batch(batch.columns | numbers, mesh, whole=pipeline.whole)
            rows = sharding.fetch(columns["examples"])
            for name, ragged in zip(names, made, strict=True):
                own = {k: columns[f"{name}{k}"] for k in ("tokens", "valid", "mask")}
                if f"{name}pack" in columns:
                    own["pack"] = columns[f"{name}pack"]
                ragged.put(rows, sharding.fetch(reference(params, own).logps))
            bar.update(step, {})
    return made


def _read_by_all(path: Path, size: int) -> np.ndarray | None:
    """The file's numbers where every process has them; else None on all: they compute together."""
    flat = _read(path, size)
    if not all(exchange.from_each(lambda: flat is not None)):
        return None
    _log.info("the reference's log-probs are those of %s", path)
    return flat


def _keep(path: Path, flat: np.ndarray) -> None:
    """Writes the file on process 0, then on those whose folder still lacks it."""
    first = jax.process_index() == 0
    exchange.from_each(lambda: _write(path, flat) if first else None)
    lacking = not first and _read(path, flat.size) is None
    exchange.from_each(lambda: _write(path, flat) if lacking else None)


def _read(path: Path, size: int) -> np.ndarray | None:
    """The file's numbers; None where there is none, or a damaged one."""
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        flat = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    if flat.shape != (size,) or record.get("crc32") != zlib.crc32(flat.tobytes()):
        _log.warning("%s is damaged: the reference's log-probs are computed again", path)
        return None
    return flat


def _write(path: Path, flat: np.ndarray) -> None:
    record = path.with_suffix(".json")
    temporary = path.with_suffix(f".{jax.process_index()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, flat)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        record.write_text(json.dumps({"crc32": zlib.crc32(flat.tobytes())}))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: the reference's log-probs cannot be written ({error.strerror or error}); "
            "set config.data.cache, or config.reference.mode = 'live'"
        ) from error
