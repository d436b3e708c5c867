"""Writes a model's folder: weights in shards, configs, tokenizer; or a PEFT adapter's."""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ptjax.errors import UserError, did_you_mean
from ptjax.export import folder as folders
from ptjax.export.gather import Named, to_host, write_once
from ptjax.hosts import exchange
from ptjax.models import lora as lora_module
from ptjax.models import peft
from ptjax.models.bundle import policy
from ptjax.models.config_out import write_configs, write_json
from ptjax.models.load import Bundle
from ptjax.models.lora import Lora
from ptjax.models.spec import Dims, Param, Table, hf_names, hf_shape, to_layout
from ptjax.models.tokenizer import save_tokenizer
from ptjax.models.weights import Lazy
from ptjax.models.weights_out import write_safetensors
from ptjax.run_files import split_source
from ptjax.sharding import brought
from ptjax.types import Leaf, Weights
from ptjax.workdir import load, load_workdir

KINDS = ("merged", "adapter", "full")
DTYPES = ("float32", "bfloat16", "float16")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: Path
    kind: str
    tensors: int
    bytes: int

    def __str__(self) -> str:
        what = "adapter" if self.kind == "adapter" else "model"
        return f"wrote the {what} to {self.folder}: {self.tensors} tensors, {self.bytes:,} bytes"


def export(
    source: Bundle | str,
    folder: str | os.PathLike[str],
    *,
    kind: str = "merged",
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    step: int | None = None,
    ema: bool | None = None,
    base: str | None = None,
    saved: Sequence[str] = (),
) -> Exported:
    """Writes a folder that transformers, or for an adapter peft, loads.

    A value head or critic stays behind: the policy alone is written. Tensors are fetched one at a
    time from wherever they are sharded. In a run of several processes
    all of them call this; process 0 writes. A model that was imported and not trained comes back
    byte for byte, unless it was loaded in fewer bits than it was stored in; kernels that were
    quantised are written as they were computed with.

    Args:
      source: a bundle, or what `ptjax.load` takes: a run's workdir, `workdir@step`, a folder, ...
      folder: new, empty, or an earlier export, which is replaced.
      kind: `merged` (adapters folded into the weights), `adapter` (a PEFT folder) or `full` (a
        model without adapters).
      dtype: of the weights, `float32`, `bfloat16` or `float16`; by default each tensor's as it was
        imported, and float32 for an adapter.
      max_shard_bytes: a weight file's bound.
      step: which checkpoint of a workdir; by default the newest that verifies.
      ema: whether to take the moving average of a workdir's trained leaves; by default where there
        is one.
      base: the model an adapter belongs to, as peft will look for it; by default what it was
        trained on.
      saved: leaves that were trained beside an adapter and go whole into its folder; a workdir
        knows its own.

    Raises:
      UserError: a folder that holds something else, no adapter where one was asked for, a source
        that cannot be loaded, a disk that is full.
    """
    _check(kind, dtype)
    target = Path(folder)
    exchange.from_primary(exchange.ticket(), lambda: folders.check(target))
    bundle = source if isinstance(source, Bundle) else _load(source, step, ema)
    if bundle.hf_config.get("model_type") == "flax":
        raise UserError(
            f"{bundle.source}: a flax module of yours has no Hugging Face layout to export to; "
            "its leaves are the params of ptjax.load"
        )
    bundle = policy(bundle)
    lora = bundle.model.lora
    if kind == "full" and lora is not None:
        raise UserError(f"{bundle.source} has adapters: export it as 'merged' or 'adapter'")
    config: dict[str, Any] | None = None
    if kind == "adapter":
        if lora is None:
            raise UserError(f"{bundle.source}: no adapter to export; export the merged model")
        head = [name for name in ("score",) if name in bundle.params]
        changed = [name for name in getattr(bundle, "changed", ()) if name in bundle.params]
        saved = list(dict.fromkeys([*saved, *changed, *head]))
        if base is None and bundle.part_of is not None:
            raise UserError(
                f"{bundle.source}: an adapter of the language part of a {bundle.part_of} does not "
                "fit the whole in peft; export the untrained source, and name that folder as base"
            )
        base = base or bundle.source
        config = peft.adapter_config(bundle.model.table, lora, base=base, saved=saved)
        tensors, stem = list(_adapter_tensors(bundle, lora, saved, dtype)), peft.STEM
        max_shard_bytes = sys.maxsize  # peft reads one file
    else:
        tensors, stem = list(_model_tensors(bundle, dtype)), "model"

    def write(tensors: Sequence[Named]) -> None:
        origin = bundle.tokenizer.name_or_path
        with folders.writing(target, kind=kind, source=bundle.source, tokenizer=origin):
            if config is None:
                write_configs(bundle, target, dtype=dtype)
            else:
                save_tokenizer(bundle.tokenizer, target)
                write_json(target / "adapter_config.json", config)
            write_safetensors(tensors, target, max_shard_bytes=max_shard_bytes, stem=stem)

    write_once(tensors, write)
    size = sum(int(np.prod(t.shape)) * t.dtype.itemsize for _, t in tensors)
    return Exported(target, kind, len(tensors), size)


def _check(kind: str, dtype: str | None) -> None:
    if kind not in KINDS:
        raise UserError(f"export: unknown kind {kind!r}{did_you_mean(kind, KINDS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"export: unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}")


def _load(source: str, step: int | None, ema: bool | None) -> Bundle:
    workdir, named = split_source(source)
    if workdir is not None:
        if step is not None and named is not None and step != named:
            raise UserError(f"{source} and step {step}: name one step")
        return load_workdir(workdir, named if step is None else step, ema=ema)
    if step is not None or ema is not None:
        what = "steps" if step is not None else "moving average"
        raise UserError(f"{source}: not a run's workdir, so it has no {what}")
    return load(source)


def _model_tensors(bundle: Bundle, dtype: str | None) -> Iterator[Named]:
    """The whole model, adapters merged, in the order it was imported in."""
    model = bundle.model
    asked = None if dtype is None else jnp.dtype(dtype)
    made = dict(_tensors(model.table, model.config.dims, bundle.params, model.lora))
    if model.head == "lm" and model.config.tied and _HEAD in bundle.dtypes:
        made[_HEAD] = made[model.table["embed"].hf]
    order = [name for name in bundle.dtypes if name in made]
    for name in dict.fromkeys([*order, *made]):
        yield name, _cast(name, made[name], asked or bundle.dtypes.get(name, made[name].dtype))


def _adapter_tensors(
    bundle: Bundle, lora: Lora, saved: Sequence[str], dtype: str | None
) -> Iterator[Named]:
    model = bundle.model
    rows = peft.rows(model.table, lora, saved)
    dims = {**model.config.dims, "rank": lora.rank}
    made = dict(_tensors(rows, dims, bundle.params, None))
    if "embed" in saved and model.config.tied and model.head == "lm":
        made[peft.TIED_HEAD] = made[rows["embed"].hf]
    for name, tensor in made.items():
        yield name, _cast(name, tensor, jnp.dtype(dtype or "float32"))


def _tensors(rows: Table, dims: Dims, params: Weights, lora: Lora | None) -> Iterator[Named]:
    """Each Hugging Face tensor of some leaves, merged with its adapter when it is fetched."""
    for name, param in rows.items():
        for hf, place in hf_names(name, param, dims):

            def get(name=name, param=param, place=place) -> np.ndarray:
                return to_layout(to_host(_slice(params, name, param, place, lora)), param, dims)

            yield hf, Lazy(hf_shape(param, dims), params[name].dtype, get)


def _slice(
    params: Weights, name: str, param: Param, place: tuple[int, ...], lora: Lora | None
) -> Array:
    """One slice of a leaf's stack, with its adapter folded in."""
    parts = {part: f"kernel{part}" for part in ("", ".lora_a", ".lora_b", ".dora_m")}
    own = {ours: params[name + part] for part, ours in parts.items() if name + part in params}
    if not place:
        return params[name]
    if lora is None or len(own) == 1:
        return brought(_at(params[name], place)).astype(params[name].dtype)
    return _merged_slice(own, place, axes=param.one.axes, lora=lora)


@functools.partial(jax.jit, static_argnames=("axes", "lora"))
def _merged_slice(own: Weights, place: tuple[Any, ...], *, axes: str, lora: Lora) -> Array:
    one = {part: brought(_at(leaf, place)) for part, leaf in own.items()}
    return lora_module.merge(one, {"kernel": Param(axes)}, lora)["kernel"]


def _at(leaf: Leaf, place: tuple[Any, ...]) -> Leaf:
    """What stands in a place of a stack, wherever the stack lies."""

    def one(part: Array) -> Array:
        for index in place:
            part = jax.lax.dynamic_index_in_dim(part, index, keepdims=False)
        return part

    return jax.tree.map(one, leaf)


def _cast(name: str, tensor: Lazy, dtype: np.dtype) -> Lazy:
    def get() -> np.ndarray:
        array = tensor.get()
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        if dtype == np.float16 and np.isinf(cast).sum() > np.isinf(array).sum():
            raise UserError(f"export: {name} overflows float16; give --dtype=bfloat16 or float32")
        return cast

    return Lazy(tensor.shape, dtype, get)
