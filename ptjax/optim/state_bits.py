"""An optimizer's moments in 8 bits (2110.02861): dequantised, updated, quantised again each step.

Codes have their parameter's shape and lie where it does; a float32 scale is kept for each block.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ptjax.models.spec import Param
from ptjax.ops.blocks import dequantise, quantise
from ptjax.types import Leaf

BITS = (8, 32)
BLOCK = 256
"""Entries that share a scale, at most: 0.125 bits of it an entry."""
_SHORTEST = 16
_NEVER_NEGATIVE = ("nu",)
"""Names under which optax keeps means of squares."""


@flax.struct.dataclass
class Moment:
    """A moment of one leaf.

    Attributes:
      codes: uint8, in the shape of the leaf.
      scale: float32, one a block.
      kind: a codec's name: `dynamic`, for squares `dynamic_unsigned`.
      axis: along which blocks lie, negative.
    """

    codes: Leaf
    scale: Leaf
    kind: str = flax.struct.field(pytree_node=False)
    axis: int = flax.struct.field(pytree_node=False)


def is_scale(path: tuple[Any, ...]) -> bool:
    """Whether a path in a state is that of a `Moment`'s scales."""
    return bool(path) and getattr(path[-1], "name", None) == "scale"


def blocks(row: Param, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Axis (negative) and length of a leaf's blocks: the longest that divide one of its axes.

    None for norms and biases, whose moments stay in float32: they are few, and each counts much.
    """
    if not (row.is_kernel or "vocab" in row.names):
        return None
    lengths = {axis: math.gcd(shape[axis], BLOCK) for axis in range(-len(shape) + row.stacked, 0)}
    axis = max(lengths, key=lambda axis: (lengths[axis], axis))
    return None if lengths[axis] < _SHORTEST else (axis, lengths[axis])


def in_8_bits(
    tx: optax.GradientTransformation, rows: Mapping[str, Param]
) -> optax.GradientTransformation:
    """The same transformation, whose state's moments of kernels and embeddings are `Moment`s.

    Args:
      tx: its state holds moments under their leaf's name and in its shape, as optax's Adam, Lion
        and momentum do.
      rows: the leaves'.
    """

    def keep(state: Any, params: Any) -> Any:
        def one(path: tuple[Any, ...], leaf: Any) -> Any:
            names = [getattr(part, "key", getattr(part, "name", None)) for part in path]
            name = next((n for n in names if n in params), None)
            if name is None or leaf.shape != params[name].shape:
                return leaf
            found = blocks(rows[name], leaf.shape)
            if found is None:
                return leaf
            axis, block = found
            squares = any(n in _NEVER_NEGATIVE for n in names)
            kind = "dynamic_unsigned" if squares else "dynamic"
            return Moment(*quantise(leaf, kind, axis, block), kind, axis)

        return jax.tree.map_with_path(one, state)

    def init(params: optax.Params) -> optax.OptState:
        return keep(tx.init(params), params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = tx.update(updates, _wide(state), params)
        return updates, keep(state, params)

    return optax.GradientTransformation(init, update)


def _wide(state: Any) -> Any:
    """The state with every moment in float32."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Moment):
            return leaf
        return dequantise(leaf.codes, leaf.scale, leaf.kind, leaf.axis, jnp.float32)

    return jax.tree.map(one, state, is_leaf=lambda leaf: isinstance(leaf, Moment))
