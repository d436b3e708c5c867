"""Attention of one new token a row over the keys and values of those before it.

Keys lie with their slots last, values with their slots before their numbers: both products read the
cache in its own order, and nothing of it is copied.

Shapes: R rows, H query heads, K key heads, G = H / K, E head_dim, S slots.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ptjax.sharding import local

_NEVER = float(jnp.finfo(jnp.float32).min)


def cached(
    q: Float[Array, "R H E"],
    k: Float[Array, "R K E S"],
    v: Float[Array, "R K S E"],
    position: Int[Array, " R"],
    window: Int[Array, ""] | int,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "R H E"]:
    """softmax(scale · q·k, capped to ±softcap) · v over the slots up to each row's position.

    Scores and softmax are float32.

    Args:
      q: queries, rotated, one a row.
      k: keys, rotated; slot s holds the token at position s.
      v: values.
      position: of each query; its own key is there already.
      window: positions that a query looks back, itself included; may be traced.
      scale: multiplies the scores.
      softcap: scores become softcap · tanh(scores / softcap).
    """

    def run(q: Array, k: Array, v: Array, position: Array, window: Array) -> Array:
        rows, heads, width = q.shape
        grouped = q.reshape(rows, k.shape[1], -1, width)
        scores = scale * jnp.einsum(
            "rkge,rkes->rkgs", grouped, k, preferred_element_type=jnp.float32
        )
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        slots, here = jnp.arange(k.shape[3]), position[:, None]
        seen = (slots <= here) & (slots > here - window)
        shares = jax.nn.softmax(jnp.where(seen[:, None, None], scores, _NEVER), axis=-1)
        out = jnp.einsum(
            "rkgs,rkse->rkge", shares.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return out.reshape(rows, heads, width).astype(q.dtype)

    # Rows and heads are independent: a partitioner left to itself gathers all heads of a row.
    kv = ("rows", "kv_heads", None, None)
    return local(
        run,
        *(q, k, v, position, jnp.asarray(window, jnp.int32)),
        inputs=(("rows", "heads", None), kv, kv, ("rows",), ()),
        output=("rows", "heads", None),
    )
