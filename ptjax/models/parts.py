"""A layer's heads and hidden units in parts, one after another: of what they make one part exists.

What `mesh.tensor` divides among devices is here divided in time: each part has kernels of its own,
so their gradients are whole and sent once. The sums that `mesh.tensor` asks for are a part's: there
are as many times more of them, and so the parts are the fewer the more devices it has.

Shapes: R rows, L tokens a row, D embed.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.models.quantised import Quantised
from ptjax.sharding import active_parts, constrain
from ptjax.types import Leaf, Weights

_MOST = 8
"""Parts, among devices and in time together. A layer's input, its cotangent and a sum stand beside
one: more would save little."""
_LANES = 128
"""Of a TPU's registers: hidden units of a part are a multiple of it, where they can be."""

Keys = tuple[Array | None, ...]
Axes = tuple[tuple[str, tuple[str, ...]], ...]
"""Of each leaf that is divided, by name."""
Norm = Callable[[Array, Array | None], Array]
Block = Callable[[Weights, Array, Any, Keys], Array]


def in_parts(
    block: Block,
    kernels: Sequence[str],
    norm: Norm,
    sizes: Mapping[str, int],
    x: Float[Array, "R L D"],
    context: Any,
    keys: Keys,
    *,
    scale: Array | None,
    layer: Weights,
    names: Mapping[str, Sequence[str]],
) -> Float[Array, "R L D"]:
    """Σ over parts of block(a part's weights, norm(x), context, keys).

    Each is computed again in the backward pass. The sum and the gradient of norm(x) are float32:
    rounding does not grow with the number of parts.

    Args:
      block: a sum over what is divided; it refers to no array but what it is given.
      kernels: that it uses; the last has what is divided among its inputs.
      norm: of x and a scale.
      sizes: of the logical axes that are divided, together: heads and the key heads they share.
      x: hidden states.
      context: what else every part reads, of which there is no gradient.
      keys: randomness, of the kernels in order; of the last's inputs each part draws its own.
      scale: the norm's, if it has one.
      layer: one layer's leaves.
      names: the logical axes of each.
    """
    weights = {name: leaf for name, leaf in layer.items() if name.split(".")[0] in kernels}
    bias = weights.pop(f"{kernels[-1]}.bias", None)
    # DoRA's magnitudes of the last kernel are over all of its inputs.
    count = 1 if f"{kernels[-1]}.dora_m" in weights else _count(sizes)
    places = {name: at for name in weights if (at := _where(names[name], sizes)) is not None}
    split = {
        name: _cut(weights.pop(name), names[name], at, count, x) for name, at in places.items()
    }
    # What is dropped of norm(x) is the same for all parts, as it is without any.
    drawn = [None if key is None else jnp.stack([key] * count) for key in keys[:-1]]
    drawn += [None if key is None else jax.random.split(key, count) for key in keys[-1:]]
    axes = tuple((name, tuple(names[name])) for name in split)
    y: Array = _summed(block, norm, axes, split, weights, scale, x, context, tuple(drawn))
    return y if bias is None else y + bias.astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _summed(
    block: Block,
    norm: Norm,
    axes: Axes,
    split: Weights,
    whole: Weights,
    scale: Array | None,
    x: Array,
    context: Any,
    keys: Keys,
) -> Array:
    y = norm(x, scale)

    def part(total: Array, scanned: tuple[Weights, Keys]) -> tuple[Array, None]:
        own, drawn = scanned
        made = block({**whole, **_gathered(own, axes)}, y, context, drawn)
        return total + made.astype(jnp.float32), None

    total, _ = jax.lax.scan(part, _zeros(x), (split, keys))
    return total.astype(x.dtype)


def _summed_fwd(block: Block, norm: Norm, axes: Axes, *args: Any) -> tuple[Array, Any]:
    return _summed(block, norm, axes, *args), args


def _summed_bwd(block: Block, norm: Norm, axes: Axes, kept: Any, g: Array) -> tuple[Any, ...]:
    split, whole, scale, x, context, keys = kept
    # norm(x) is made when g is there: one that the forward pass made would be kept till then.
    x, g = jax.lax.optimization_barrier((x, g))
    y, pull = jax.vjp(norm, x, scale)

    def part(sums: tuple[Weights, Array], scanned: tuple[Weights, Keys]) -> tuple[Any, Weights]:
        own, drawn = scanned

        def of(own: Weights, whole: Weights, y: Array) -> Array:
            return block({**whole, **own}, y, context, drawn)

        d_own, *d_both = jax.vjp(of, _gathered(own, axes), whole, y)[1](g)
        sums = jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, tuple(d_both))
        return sums, {name: constrain(d_own[name], *names) for name, names in axes}

    zeros = jax.tree.map(jnp.zeros_like, whole), _zeros(g)
    (d_whole, d_y), d_split = jax.lax.scan(part, zeros, (split, keys))
    # Both at once: what waits for the one would keep the sum that both are made of.
    d_x, d_scale = jax.lax.optimization_barrier(pull(d_y.astype(x.dtype)))
    return d_split, d_whole, d_scale, d_x, None, None


_summed.defvjp(_summed_fwd, _summed_bwd)


def _zeros(x: Array) -> Array:
    """Of a sum, but not before x is there: a compiler would make room for all sums at once."""
    return (x - x).astype(jnp.float32)


def _count(sizes: Mapping[str, int]) -> int:
    """In how many parts axes are divided, each device's share of them alike."""
    over = {active_parts(name) for name in sizes}
    if len(over) != 1 or any(size % min(over) for size in sizes.values()):
        return 1
    devices = over.pop()
    size = math.gcd(*sizes.values()) // devices
    if "mlp" in sizes and size % _LANES == 0:
        size //= _LANES
    return max(count for count in range(1, max(_MOST // devices, 1) + 1) if size % count == 0)


def _gathered(own: Weights, axes: Axes) -> Weights:
    """A part's kernels, whole but for what `mesh.tensor` divides.

    Said, for a compiler may also add up the products of each device's share of a kernel, in sums as
    large as hidden states.
    """
    return {
        name: constrain(own[name], *(None if axis == "embed" else axis for axis in names))
        for name, names in axes
    }


def _where(names: Sequence[str], cut: Mapping[str, int]) -> int | None:
    """Which axis of a leaf is divided."""
    return next((at for at, name in enumerate(names) if name in cut), None)


def _cut(leaf: Leaf, names: Sequence[str], at: int, count: int, x: Array) -> Array:
    """A leaf's parts along a new first axis; of each device's share of it the same part."""
    leaf = leaf.astype(x.dtype) if isinstance(leaf, Quantised) else leaf
    before, after = leaf.shape[:at], leaf.shape[at + 1 :]
    devices = active_parts(names[at]) if count > 1 else 1
    parts = leaf.reshape(*before, devices, count, -1, *after)
    return jnp.moveaxis(parts, at + 1, 0).reshape(count, *before, -1, *after)
