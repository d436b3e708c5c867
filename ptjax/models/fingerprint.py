"""A checksum of parameters, by which a run knows its base model again."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.sharding import brought
from ptjax.types import Weights


def fingerprint(leaves: Weights) -> dict[str, str]:
    """A checksum of each leaf's bits, computed where it lies, the same on any mesh.

    Of a leaf of several parts (codes and scales) it is that of each part.
    """

    @jax.jit
    def sums(leaves: Weights) -> dict[str, Any]:
        def one(leaf: Array) -> Array:
            bits = jax.lax.bitcast_convert_type(brought(leaf), f"uint{8 * leaf.dtype.itemsize}")
            bits = bits.astype(jnp.uint32).ravel()
            place = jax.lax.iota(jnp.uint32, bits.size)
            return jnp.sum((bits ^ (place * jnp.uint32(2654435761))) * jnp.uint32(2246822519))

        return {name: jax.tree.leaves(jax.tree.map(one, leaf)) for name, leaf in leaves.items()}

    return {
        name: "".join(f"{int(value):08x}" for value in parts)
        for name, parts in sums(leaves).items()
    }
