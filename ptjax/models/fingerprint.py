"""A checksum of parameters, by which a run knows its base model again."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.types import Params


def fingerprint(leaves: Params) -> dict[str, str]:
    """A checksum of each leaf's bits, computed where it lies, the same on any mesh."""

    @jax.jit
    def sums(leaves: Params) -> dict[str, Array]:
        def one(leaf: Array) -> Array:
            bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
            bits = bits.astype(jnp.uint32).ravel()
            place = jax.lax.iota(jnp.uint32, bits.size)
            return jnp.sum((bits ^ (place * jnp.uint32(2654435761))) * jnp.uint32(2246822519))

        return {name: one(leaf) for name, leaf in leaves.items()}

    return {name: f"{int(value):08x}" for name, value in sums(leaves).items()}
