"""Weights declared once: one row gives a parameter's axes, initialiser and Hugging Face layout.

A table is a dict from our name to a `Param`; names are flat (`layers.q`) and layers are stacked
along a leading `layers` axis, so that the decoder scans over them. Import and export read the same
row, and a wrong row fails in a reshape.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ptjax.types import Params


class Param(NamedTuple):
    """One row of a model's table.

    Attributes:
      axes: logical axes, `layers` first where the leaf is stacked; a kernel separates what it
        contracts from what it produces by an arrow: `layers embed -> heads head_dim`.
      hf: Hugging Face key, `{}` for the layer's number.
      layout: the key's own axes, merged axes in brackets: `(heads head_dim) embed`; empty where
        it is the order of `axes`.
      init: `normal` (standard deviation 1/√fan-in), `uniform` (±1/√fan-in), `embed` (normal,
        standard deviation 0.02), `zeros` or `ones`.
    """

    axes: str
    hf: str = ""
    layout: str = ""
    init: str = "normal"

    @property
    def names(self) -> tuple[str, ...]:
        """The logical axes, without the arrow."""
        return tuple(self.axes.replace("->", " ").split())

    @property
    def stacked(self) -> bool:
        """Whether the leaf has one slice a layer."""
        return self.names[0] == "layers"

    @property
    def is_kernel(self) -> bool:
        """Whether the leaf is a linear map: what LoRA, weight decay and Muon act on."""
        return "->" in self.axes

    @property
    def inputs(self) -> tuple[str, ...]:
        """The axes that a kernel contracts."""
        return tuple(name for name in self.axes.split("->")[0].split() if name != "layers")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The axes that a kernel produces."""
        return tuple(self.axes.split("->")[1].split())


Table = Mapping[str, Param]
Dims = Mapping[str, int]


def shape(param: Param, dims: Dims) -> tuple[int, ...]:
    """The shape of a leaf, from the sizes of its axes."""
    return tuple(dims[name] for name in param.names)


def shapes(table: Table, dims: Dims, dtype: jnp.dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of all leaves of a table."""
    return {k: jax.ShapeDtypeStruct(shape(p, dims), dtype) for k, p in table.items()}


def init(table: Table, dims: Dims, key: Array, dtype: str = "float32") -> Params:
    """Random parameters for a table, each leaf from its own fold of the key."""

    def leaf(name: str, param: Param, key: Array) -> Array:
        size = shape(param, dims)
        if param.init in ("zeros", "ones"):
            return jnp.full(size, float(param.init == "ones"), dtype)
        fan_in = math.prod(dims[a] for a in param.inputs) if param.is_kernel else 1
        scale = 0.02 if param.init == "embed" else fan_in**-0.5
        if param.init == "uniform":
            return jax.random.uniform(key, size, minval=-scale, maxval=scale).astype(dtype)
        return (scale * jax.random.normal(key, size)).astype(dtype)

    keys = jax.random.split(key, len(table))
    return {
        name: leaf(name, param, k) for (name, param), k in zip(table.items(), keys, strict=True)
    }


def hf_names(name: str, param: Param, dims: Dims) -> Iterator[tuple[str, int | None]]:
    """Yields the Hugging Face keys of a leaf, each with the layer that it fills."""
    if param.stacked:
        yield from ((param.hf.format(i), i) for i in range(dims["layers"]))
    else:
        yield param.hf, None


def _groups(param: Param) -> list[list[str]]:
    """The layout as a list of merged axes: `(a b) c` is [[a, b], [c]]."""
    own = [name for name in param.names if name != "layers"]
    text = param.layout or " ".join(own)
    groups = [g.strip("()").split() for g in re.findall(r"\([^)]*\)|\S+", text)]
    if sorted(sum(groups, [])) != sorted(own):
        raise ValueError(f"layout {param.layout!r} does not name the axes of {param.axes!r}")
    return groups


def hf_shape(param: Param, dims: Dims) -> tuple[int, ...]:
    """The shape of one Hugging Face tensor of this row."""
    return tuple(math.prod(dims[name] for name in group) for group in _groups(param))


def from_layout(tensor: np.ndarray, param: Param, dims: Dims) -> np.ndarray:
    """One Hugging Face tensor in our axes, without the `layers` axis (a view where possible)."""
    flat = sum(_groups(param), [])
    own = [name for name in param.names if name != "layers"]
    split = tensor.reshape([dims[name] for name in flat])
    return split.transpose([flat.index(name) for name in own])


def to_layout(leaf: np.ndarray, param: Param, dims: Dims) -> np.ndarray:
    """The inverse of `from_layout`, contiguous."""
    groups = _groups(param)
    own = [name for name in param.names if name != "layers"]
    order = [own.index(name) for name in sum(groups, [])]
    return np.ascontiguousarray(leaf.transpose(order)).reshape(hf_shape(param, dims))
