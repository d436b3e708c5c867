"""One vector a sequence from the hidden states of its tokens, packed or not.

Shapes: S batch shards, M tokens and K sequences of a shard, D embed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

POOLINGS = ("last", "mean")


def pool(
    hidden: Float[Array, "S M D"], owners: Int[Array, "S M"], count: int, pooling: str
) -> Float[Array, "S K D"]:
    """The last or the mean hidden state of each sequence, float32.

    Where S lies over devices, each pools its own shards and nothing moves, forward and backward.

    Args:
      hidden: states of all tokens.
      owners: the sequence that each token belongs to, whose tokens stand in order; `count` for
        padding.
      count: K, sequences of a shard.
      pooling: `last` or `mean`.

    Returns:
      [S, K, D], 0 for a sequence that has no token.
    """

    def one(hidden: Array, owners: Array) -> Array:
        if pooling == "mean":
            sums = jnp.zeros((count, hidden.shape[-1]), jnp.float32)
            sums = sums.at[owners].add(hidden.astype(jnp.float32), mode="drop")
            tokens = jnp.zeros(count, jnp.float32).at[owners].add(1.0, mode="drop")
            return sums / jnp.maximum(tokens, 1.0)[:, None]
        places = jnp.arange(owners.shape[0], dtype=jnp.int32)
        last = jnp.full(count, -1, jnp.int32).at[owners].max(places, mode="drop")
        taken = hidden[jnp.maximum(last, 0)].astype(jnp.float32)
        return jnp.where(last[:, None] >= 0, taken, 0.0)

    return jax.vmap(one)(hidden, owners)
