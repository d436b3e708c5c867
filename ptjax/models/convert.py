"""Between Hugging Face's tensors and our stacked, sharded leaves, one tensor at a time."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from ptjax import sharding
from ptjax.errors import UserError, did_you_mean
from ptjax.hosts import exchange
from ptjax.models.families import SCALARS
from ptjax.models.quantised import empty, outline, put, writer
from ptjax.models.spec import (
    Dims,
    Param,
    Table,
    hf_names,
    hf_shape,
    part_from_layout,
    shape,
    to_layout,
)
from ptjax.models.weights import Index, Lazy, TensorSource
from ptjax.types import Leaf, Params

# Rows of a tied head that are compared with the embeddings at a time.
_ROWS = 4096
# Buffers that old checkpoints hold beside their weights, and that every reader computes instead.
_BUFFERS = ("rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")


def check(table: Table, dims: Dims, source: TensorSource) -> None:
    """Compares a source with a table before anything is read.

    Raises:
      UserError: a tensor is missing, one is there that no row names, or a shape differs.
    """
    specs = source.specs()
    expected = {
        hf: hf_shape(param, dims)
        for name, param in table.items()
        for hf, _ in hf_names(name, param, dims)
    }
    for name, wanted in expected.items():
        if name not in specs:
            raise UserError(
                f"{source.origin}: tensor {name!r} is missing{did_you_mean(name, specs)}"
                if len(specs) < 50
                else f"{source.origin}: tensor {name!r} is missing"
            )
        if tuple(specs[name].shape) != wanted:
            raise UserError(
                f"{source.origin}: tensor {name!r} has shape {tuple(specs[name].shape)}, "
                f"but the config asks for {wanted}"
            )
    for name in specs:
        tied_head = name == "lm_head.weight" and "head" not in table
        if name not in expected and not tied_head and not name.endswith(_BUFFERS):
            raise UserError(
                f"{source.origin}: tensor {name!r} belongs to no parameter of the model"
            )


def from_hf(
    table: Table,
    dims: Dims,
    source: TensorSource,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    base: str = "none",
    offload: bool = False,
) -> Params:
    """Reads a checkpoint into stacked leaves, each tensor straight into its place on its devices.

    The host holds one tensor at a time, and of several hosts each reads what lies on its devices; a
    stacked leaf lives on the devices from the start.

    Args:
      table: the model's rows.
      dims: sizes of the logical axes.
      source: the checkpoint.
      dtype: of the parameters; a scalar head is in float32.
      mesh: where they go, by the rules of `sharding`; None for the first device.
      base: how kernels of the layers are kept, one of `quantised.BASES`; they are quantised from
        float32, whatever `dtype` is.
      offload: whether those kernels then lie in the host's memory.
    """
    check(table, dims, source)
    mesh = sharding.one_device() if mesh is None else mesh
    _check_tied(table, source, exchange.own if mesh.is_multi_process else _all)
    made: dict[str, Any] = {}
    for name, param in table.items():
        own = "float32" if name in SCALARS else dtype
        outlined = outline(param, shape(param, dims), base, own, mesh)
        if outlined is None:
            made[name] = _leaf(name, param, dims, source, jnp.dtype(own), mesh)
        else:
            slices = _slices(name, param, dims, source, jnp.dtype("float32"), mesh)
            made[name] = _stacked(empty(outlined), writer(outlined), slices)
        if offload:
            made[name] = away(made[name], param)
    return made


def away(leaf: Leaf, param: Param) -> Leaf:
    """A kernel of the layers in the host's memory, any other leaf as it is."""
    if not param.of_layers:
        return leaf
    return jax.tree.map(
        lambda part: jax.device_put(part, sharding.on_host(part.sharding, True)), leaf
    )


def _all(count: int) -> slice:
    return slice(0, count)


def _check_tied(table: Table, source: TensorSource, own: Callable[[int], slice]) -> None:
    """A tied model may come with a head of its own only if that is the embeddings again.

    Of so many rows a process looks at its `own`.
    """
    if "head" in table or "lm_head.weight" not in source.specs():
        return
    embed = table["embed"].hf
    specs = source.specs()
    same = specs["lm_head.weight"].shape == specs[embed].shape
    rows_here = range(specs[embed].shape[0])[own(specs[embed].shape[0])]
    for start in rows_here[::_ROWS] if same else ():
        rows = (slice(start, min(start + _ROWS, rows_here.stop)),)
        same = same and np.array_equal(
            source.read("lm_head.weight", rows), source.read(embed, rows)
        )
    if not same:
        raise UserError(
            f"{source.origin}: lm_head.weight differs from the embeddings, but the config ties "
            "them; set tie_word_embeddings to false in config.json"
        )


def _leaf(
    name: str, param: Param, dims: Dims, source: TensorSource, dtype: np.dtype, mesh: Mesh
) -> Array:
    size = shape(param, dims)
    placed = sharding.named(param.names, size, mesh)
    if not param.stack:
        return _read(param.hf, param, dims, source, dtype, placed)
    stack = jnp.zeros(size, dtype, device=placed)
    return _stacked(stack, _writer(placed), _slices(name, param, dims, source, dtype, mesh))


def _slices(
    name: str, param: Param, dims: Dims, source: TensorSource, dtype: np.dtype, mesh: Mesh
) -> Iterator[tuple[Array, tuple[int, ...]]]:
    """Each tensor of a stacked leaf, on its devices, and its place."""
    placed = sharding.named(param.one.names, shape(param.one, dims), mesh)
    for hf, place in hf_names(name, param, dims):
        yield _read(hf, param.one, dims, source, dtype, placed), place


def _read(
    hf: str, param: Param, dims: Dims, source: TensorSource, dtype: np.dtype, placed: NamedSharding
) -> Array:
    """One tensor on its devices; of it is read the smallest block that holds what lies on ours."""
    size = shape(param, dims)
    wanted = placed.addressable_devices_indices_map(size).values()
    ranges = [
        [range(length)[part] for length, part in zip(size, index or (), strict=True)]
        for index in wanted
    ]
    starts = [min(part.start for part in parts) for parts in zip(*ranges, strict=True)]
    stops = [max(part.stop for part in parts) for parts in zip(*ranges, strict=True)]
    block = part_from_layout(
        functools.partial(source.read, hf), param, dims, tuple(map(slice, starts, stops))
    )

    def cut(index: Index | None) -> np.ndarray:
        parts = zip(size, index or (), starts, strict=True)
        own = [(range(length)[part], start) for length, part, start in parts]
        return _cast(block[tuple(slice(r.start - at, r.stop - at) for r, at in own)], dtype)

    return jax.make_array_from_callback(size, placed, cut)


def _stacked(
    stack: Any, write: Callable[..., Any], slices: Iterable[tuple[Array, tuple[int, ...]]]
) -> Any:
    """A stack with each tensor written into its place."""
    for one, place in slices:
        stack = write(stack, one, place)
    return stack


def _cast(tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(tensor.astype(dtype))


@functools.cache
def _writer(placed: NamedSharding) -> Callable[[Array, Array, Any], Array]:
    """Writes one tensor into its place of a stacked leaf."""
    return jax.jit(put, donate_argnums=0, out_shardings=placed)


def to_hf(
    table: Table, dims: Dims, params: Mapping[str, Array], dtypes: Mapping[str, np.dtype] | np.dtype
) -> Iterator[tuple[str, Lazy]]:
    """Yields (name, tensor) of a model in the Hugging Face layout; each is fetched when used.

    Args:
      table: the model's rows.
      dims: sizes of the logical axes.
      params: merged leaves.
      dtypes: of the tensors: one for all, or by Hugging Face name (as they were imported).
    """
    for name, param in table.items():
        for hf, place in hf_names(name, param, dims):
            dtype = dtypes if isinstance(dtypes, np.dtype) else dtypes[hf]

            def get(leaf=params[name], place=place, param=param, dtype=dtype) -> np.ndarray:
                return to_layout(np.asarray(leaf[place]), param, dims).astype(dtype)

            yield hf, Lazy(hf_shape(param, dims), dtype, get)
