"""Weights declared once: one row gives a parameter's axes, initialiser and Hugging Face layout.

A table is a dict from our name to a `Param`; names are flat (`layers.q`) and layers are stacked
along a leading `layers` axis, so that the decoder scans over them; the experts of a layer along an
`experts` axis behind it. Import and export read the same row, and a wrong row fails in a reshape.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ptjax.types import Params

STACKS = ("layers", "experts")
"""Leading axes along which a leaf holds many tensors of the Hugging Face layout."""


class Param(NamedTuple):
    """One row of a model's table.

    Attributes:
      axes: logical axes, those of `STACKS` first where the leaf is stacked; a kernel separates what
        it contracts from what it produces by an arrow: `layers embed -> heads head_dim`.
      hf: Hugging Face key, `{}` for the layer's number, another for the expert's.
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
    def stack(self) -> tuple[str, ...]:
        """The axes that it is stacked along."""
        return tuple(itertools.takewhile(STACKS.__contains__, self.names))

    @property
    def one(self) -> "Param":
        """The row of one slice of the stack."""
        return self._replace(axes=self.axes.split(maxsplit=len(self.stack))[-1])

    @property
    def stacked(self) -> bool:
        """Whether the leaf has one slice a layer."""
        return self.names[0] == "layers"

    @property
    def is_kernel(self) -> bool:
        """Whether the leaf is a linear map: what LoRA, weight decay and Muon act on."""
        return "->" in self.axes

    @property
    def of_layers(self) -> bool:
        """Whether it is a kernel of the layers: what a base may keep elsewhere, in fewer bits."""
        return self.is_kernel and self.stacked

    @property
    def inputs(self) -> tuple[str, ...]:
        """The axes that a kernel contracts."""
        return tuple(name for name in self.axes.split("->")[0].split() if name not in STACKS)

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


def hf_names(name: str, param: Param, dims: Dims) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the Hugging Face keys of a leaf, each with the place in the stack that it fills."""
    for place in itertools.product(*(range(dims[axis]) for axis in param.stack)):
        yield param.hf.format(*place), place


def _groups(param: Param) -> list[list[str]]:
    """The layout as a list of merged axes: `(a b) c` is [[a, b], [c]]."""
    own = param.one.names
    text = param.layout or " ".join(own)
    groups = [g.strip("()").split() for g in re.findall(r"\([^)]*\)|\S+", text)]
    if sorted(sum(groups, [])) != sorted(own):
        raise ValueError(f"layout {param.layout!r} does not name the axes of {param.axes!r}")
    return groups


def hf_shape(param: Param, dims: Dims) -> tuple[int, ...]:
    """The shape of one Hugging Face tensor of this row."""
    return tuple(math.prod(dims[name] for name in group) for group in _groups(param))


def from_layout(tensor: np.ndarray, param: Param, dims: Dims) -> np.ndarray:
    """One Hugging Face tensor in our axes, without those of the stack (a view where possible)."""
    flat = sum(_groups(param), [])
    split = tensor.reshape([dims[name] for name in flat])
    return split.transpose([flat.index(name) for name in param.one.names])


def part_from_layout(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    param: Param,
    dims: Dims,
    index: Sequence[slice],
) -> np.ndarray:
    """A part of one Hugging Face tensor in our axes, of which little more than it is read.

    Of axes that the layout merges, the outermost alone can be cut before reading.

    Args:
      read: gives `tensor[index]`, an index along the tensor's own axes.
      param: the tensor's row.
      dims: sizes of the logical axes.
      index: which part, along the axes of `from_layout`.
    """
    ranges = {
        name: range(dims[name])[part] for name, part in zip(param.one.names, index, strict=True)
    }
    sizes, rows, whole = dict(dims), [], dict(zip(param.one.names, index, strict=True))
    for outer, *inner in _groups(param):
        step = math.prod(dims[name] for name in inner)
        rows.append(slice(ranges[outer].start * step, ranges[outer].stop * step))
        sizes[outer] = len(ranges[outer])
        whole[outer] = slice(None)
    return from_layout(read(tuple(rows)), param, sizes)[tuple(whole.values())]


def to_layout(leaf: np.ndarray, param: Param, dims: Dims) -> np.ndarray:
    """The inverse of `from_layout`, contiguous."""
    groups = _groups(param)
    order = [param.one.names.index(name) for name in sum(groups, [])]
    return np.ascontiguousarray(leaf.transpose(order)).reshape(hf_shape(param, dims))
