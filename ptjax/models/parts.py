"""A layer's heads and hidden units in parts, one after another: of what they make one part exists.

What `mesh.tensor` divides among devices is here divided in time: each part has kernels of its own,
so their gradients are whole, and nothing is sent more often.

Shapes: R rows, L tokens a row, D embed.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.models.quantised import Quantised
from ptjax.sharding import active_parts
from ptjax.types import Leaf, Weights

_MOST = 8
"""Parts. A layer's input, its cotangent and two sums stand beside one: more would save little."""
_LANES = 128
"""Of a TPU's registers: hidden units of a part are a multiple of it, where they can be."""

Keys = tuple[Array | None, ...]


def in_parts(
    block: Callable[[Weights, Array, Keys], Array],
    kernels: Sequence[str],
    sizes: Mapping[str, int],
    x: Float[Array, "R L D"],
    keys: Keys,
    *,
    layer: Weights,
    names: Mapping[str, Sequence[str]],
) -> Float[Array, "R L D"]:
    """Σ over parts of block(a part's weights, x, keys), each computed again in the backward pass.

    The sum and the gradient of x are float32: rounding does not grow with the number of parts.

    Args:
      block: of weights, inputs and randomness; a sum over what is divided.
      kernels: that it uses; the last has what is divided among its inputs.
      sizes: of the logical axes that are divided, together: heads and the key heads they share.
      x: what every part reads.
      keys: randomness; each part draws its own.
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
    wide = x.astype(jnp.float32)

    def part(total: Array, scanned: tuple[Array, Weights]) -> tuple[Array, None]:
        number, own = scanned
        drawn = tuple(None if key is None else jax.random.fold_in(key, number) for key in keys)
        y = block({**weights, **own}, wide.astype(x.dtype), drawn)
        return total + y.astype(jnp.float32), None

    part = jax.checkpoint(part, prevent_cse=False)
    total, _ = jax.lax.scan(part, jnp.zeros_like(wide), (jnp.arange(count), split))
    total = total if bias is None else total + bias.astype(jnp.float32)
    return total.astype(x.dtype)


def _count(sizes: Mapping[str, int]) -> int:
    """In how many parts axes are divided, each device's share of them alike."""
    over = {active_parts(name) for name in sizes}
    if len(over) != 1 or any(size % min(over) for size in sizes.values()):
        return 1
    size = math.gcd(*sizes.values()) // over.pop()
    size = size // _LANES if size % _LANES == 0 else size
    return max(count for count in range(1, _MOST + 1) if size % count == 0)


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
