"""Frozen kernels kept in 8 or 4 bits under adapters (QLoRA, 2305.14314).

Those of the layers are: projections of attention and MLP, a critic's too. Embeddings, heads, norms
and biases stay as they are. A layer's kernel is dequantised where the layer uses it.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ptjax import sharding
from ptjax.errors import UserError, did_you_mean
from ptjax.models.spec import Param
from ptjax.ops.blocks import CODECS, dequantise, quantise
from ptjax.types import Leaf, Params, Weights

_log = logging.getLogger(__name__)

BASES = ("none", "int8", "nf4")
"""How the base of adapters may be kept."""
BLOCK = 64
"""Entries that share a scale: 0.5 bits of it an entry."""
_SHORTEST = 8
"""Kernels whose blocks would be shorter stay as they are: scales would take more than is saved."""


@flax.struct.dataclass
class Quantised:
    """A kernel, or a stack of them, in the place of an array: dequantised by `astype`.

    Attributes:
      codes: uint8; of NF4 the axis of the blocks is half as long.
      scale: float32, one a block.
      kind: a codec's name.
      axis: along which blocks lie, negative: the last that the kernel contracts.
      kept_from: dtype that the kernel had, and has again when adapters are merged into it.
    """

    codes: Leaf
    scale: Leaf
    kind: str = flax.struct.field(pytree_node=False)
    axis: int = flax.struct.field(pytree_node=False)
    kept_from: str = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        sizes = list(self.codes.shape)
        sizes[self.axis] *= 2 if CODECS[self.kind].packed else 1
        return tuple(sizes)

    @property
    def size(self) -> int:
        """Parameters."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Dimensions of the kernel."""
        return len(self.codes.shape)

    @property
    def dtype(self) -> Any:
        """That of the kernel before, and of what is merged."""
        return jnp.dtype(self.kept_from)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, over all devices."""
        return self.codes.nbytes + self.scale.nbytes

    def astype(self, dtype: Any) -> Array:
        """The kernel, dequantised."""
        return dequantise(self.codes, self.scale, self.kind, self.axis, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The kernel as numpy has it, dequantised to the dtype that it had."""
        return np.asarray(self.astype(self.dtype), dtype)

    def __getitem__(self, place: Any) -> "Quantised":
        """What stands in a place of a stack."""
        return jax.tree.map(lambda part: part[place], self)


def check_base(base: str, *, where: str = "config.model.base") -> None:
    """Raises UserError for a way to keep the base that is none of `BASES`."""
    if base not in BASES:
        raise UserError(f"{where} = {base!r}{did_you_mean(str(base), BASES)}")


def outline(
    row: Param, shape: tuple[int, ...], kind: str, dtype: str, mesh: Mesh
) -> Quantised | None:
    """What a kernel will be: shapes with shardings, codes and scales by the rules of its axes.

    Args:
      row: the leaf's.
      shape: of the leaf.
      kind: one of `BASES`.
      dtype: that it has, or would have.
      mesh: where it goes.

    Returns:
      None where it is not kept in fewer bits: `none`, no kernel of a layer, or an axis that has no
      blocks worth it.
    """
    if kind == "none" or not row.of_layers:
        return None
    axis = row.names.index(row.inputs[-1]) - len(row.names)
    block = math.gcd(shape[axis], BLOCK)
    if block < _SHORTEST:
        _log.warning("a kernel %s of shape %s has no blocks: kept in %s", row.axes, shape, dtype)
        return None
    codes, scale = jax.eval_shape(
        lambda: quantise(jnp.zeros(shape, jnp.float32), kind, axis, block)
    )

    def place(part: Any) -> jax.ShapeDtypeStruct:
        at = sharding.named(row.names, part.shape, mesh)
        return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=at)

    return Quantised(place(codes), place(scale), kind, axis, str(jnp.dtype(dtype)))


def empty(outlined: Quantised) -> Quantised:
    """Zeros in every place."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), outlined)


def writer(outlined: Quantised) -> Callable[[Quantised, Array, Any], Quantised]:
    """`(stack, kernel, place) -> stack`: quantises a kernel into its place of a stack."""
    return _writer(jax.tree.map(lambda s: s.sharding, outlined))


@functools.cache
def _writer(placed: Quantised) -> Callable[[Quantised, Array, Any], Quantised]:
    def write(stack: Quantised, kernel: Array, place: tuple[Any, ...]) -> Quantised:
        block = stack.shape[stack.axis] // stack.scale.shape[stack.axis]
        codes, scale = quantise(kernel, stack.kind, stack.axis, block)
        codes, scale = put(stack.codes, codes, place), put(stack.scale, scale, place)
        return replace(stack, codes=codes, scale=scale)

    return jax.jit(write, donate_argnums=0, out_shardings=placed)


def put(stack: Array, one: Array, place: tuple[Any, ...]) -> Array:
    """A stack with one array in its place."""
    block = one.reshape((1,) * len(place) + one.shape)
    return jax.lax.dynamic_update_slice(stack, block, (*place, *(0,) * one.ndim))


def quantised(params: Weights, rows: Mapping[str, Param], kind: str, mesh: Mesh) -> Params:
    """The same leaves with every kernel of the layers in fewer bits, a layer at a time.

    Args:
      params: arrays; what is quantised already stays as it is.
      rows: of those leaves.
      kind: one of `BASES`.
      mesh: where they go.
    """
    made = dict(params)
    for name, leaf in params.items():
        if isinstance(leaf, Quantised):
            continue
        outlined = outline(rows[name], leaf.shape, kind, str(leaf.dtype), mesh)
        if outlined is not None:
            stack, write = empty(outlined), writer(outlined)
            for layer in range(leaf.shape[0]):
                stack = write(stack, leaf[layer], (layer,))
            made[name] = stack
    return made
