"""Attention of one new token a row over the keys and values of those before it, which it joins.

| devices | kernel |
|---|---|
| TPU | `ragged`: what a row sees is read, and the tile that holds its token written |
| all others, and a TPU where `tiles` are asked for | two products over all slots |

How a layer's keys and values lie, this file alone knows. Keys' slots lie last. Values' lie last on
a TPU too; elsewhere before the numbers, so that both products read the cache in its own order.

Shapes: R rows, L tokens a row, H query heads, K key heads, G = H / K, E head_dim, S slots. Values
are [R, K, E, S] on a TPU, [R, K, S, E] elsewhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from ptjax.ops.ragged import LANES, ragged
from ptjax.sharding import local, platform

KEYS = 3
"""The axis of keys' slots."""
_NEVER = float(jnp.finfo(jnp.float32).min)

Values = Num[Array, "R K S E"] | Num[Array, "R K E S"]


def values() -> int:
    """The axis of values' slots, on the devices that a program is compiled for."""
    return KEYS if platform() == "tpu" else 2


def room(slots: int) -> int:
    """Slots of a row for so many tokens: on a TPU whole lanes, which its memory has in any case."""
    return slots + -slots % LANES if platform() == "tpu" else slots


def laid(
    k: Num[Array, "R L K E"], v: Num[Array, "R L K W"]
) -> tuple[Num[Array, "R K E L"], Num[Array, "R K ..."]]:
    """Keys and values of whole rows as a cache has them, of L slots."""
    return k.transpose(0, 2, 3, 1), v.transpose(0, 2, *((3, 1) if values() == KEYS else (1, 3)))


def extended(
    q: Float[Array, "R H E"],
    new_k: Float[Array, "R K E"],
    new_v: Float[Array, "R K E"],
    k: Float[Array, "R K E S"],
    v: Values,
    at: Int[Array, " R"],
    going: Bool[Array, " R"],
    window: Int[Array, ""] | int,
    *,
    scale: float,
    softcap: float | None = None,
    kernel: str = "auto",
) -> tuple[Float[Array, "R H E"], Float[Array, "R K E S"], Values]:
    """softmax(scale · q·k, capped to ±softcap) · v over the slots up to each row's token.

    Scores and softmax are float32.

    Args:
      q: queries, rotated, one a row.
      new_k: their tokens' keys, rotated.
      new_v: their tokens' values.
      k: keys, rotated; slot s holds the token at position s.
      v: values.
      at: position of each token; where there is no such slot its key and value are dropped.
      going: rows that have a token; of others nothing that a row has filled is changed, and what
        they get means nothing.
      window: positions that a query looks back, itself included; may be traced.
      scale: multiplies the scores.
      softcap: scores become softcap · tanh(scores / softcap).
      kernel: one of `ops.attention.KERNELS`.

    Returns:
      What each query gets, and keys and values with the tokens' own.
    """
    use = ragged if platform() == "tpu" and kernel in ("auto", "splash") else _products

    def run(q: Array, new_k: Array, *others: Array) -> tuple[Array, ...]:
        grouped = q.reshape(len(q), new_k.shape[1], -1, q.shape[2])
        out, *both = use(grouped, new_k, *others, scale=scale, softcap=softcap)
        return out.reshape(q.shape).astype(q.dtype), *both

    # Rows and heads are independent: a partitioner left to itself gathers all heads of a row.
    heads, new, kv = (
        ("rows", "heads", None),
        ("rows", "kv_heads", None),
        ("rows", "kv_heads", None, None),
    )
    return local(
        run,
        *(q, new_k, new_v, k, v, at, going, jnp.asarray(window, jnp.int32)),
        inputs=(heads, new, new, kv, kv, ("rows",), ("rows",), ()),
        output=[heads, kv, kv],
    )


def _products(
    q: Float[Array, "R K G E"],
    new_k: Float[Array, "R K E"],
    new_v: Float[Array, "R K E"],
    k: Float[Array, "R K E S"],
    v: Values,
    at: Int[Array, " R"],
    going: Bool[Array, " R"],
    window: Int[Array, ""],
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Array, "R K G E"], Float[Array, "R K E S"], Values]:
    """All slots of all rows, seen or not, going or not."""
    k, v = _written(k, new_k, at, KEYS), _written(v, new_v, at, values())
    lies = "rkes" if values() == KEYS else "rkse"
    scores = scale * jnp.einsum(
        "rkge,rkes->rkgs", q, k.astype(q.dtype), preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    slots, here = jnp.arange(k.shape[KEYS]), at[:, None]
    seen = (slots <= here) & (slots > here - window)
    shares = jax.nn.softmax(jnp.where(seen[:, None, None], scores, _NEVER), axis=-1)
    out = jnp.einsum(
        f"rkgs,{lies}->rkge",
        *(shares.astype(q.dtype), v.astype(q.dtype)),
        preferred_element_type=jnp.float32,
    )
    return out, k, v


def _written(x: Array, new: Array, at: Array, axis: int) -> Array:
    """Each row's token in its slot."""
    place: list[Any] = [slice(None)] * x.ndim
    place[0], place[axis] = jnp.arange(len(x)), at
    return x.at[*place].set(new.astype(x.dtype), mode="drop", unique_indices=True)
