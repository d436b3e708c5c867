"""Exact attention with segments, windows and soft caps: one signature, a kernel for each device.

| devices | kernel |
|---|---|
| TPU | `splash`: jax's Pallas kernel, for whole sequences of up to 131,072 tokens |
| GPU | `cudnn`: cuDNN's flash attention, for rows of up to 4,096 tokens in half precision |
| all, and all that those two do not cover | `tiles`: plain jax, memory linear in the length |

Where a mesh cuts rows along their length, each device has the queries of its own part and gathers
the keys and values of the whole row, which are few: every kernel then takes queries that begin at
some key, and nothing else of attention knows.

Shapes: R rows, Q queries, S keys, H query heads, K key heads, G = H / K, E head_dim.
"""

import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ptjax.errors import UserError
from ptjax.ops import cudnn, splash
from ptjax.ops.span import Span
from ptjax.ops.tiles import tiles
from ptjax.sharding import STEPS, TOKENS, gathered, local, platform

KERNELS = ("auto", "tiles", "splash", "cudnn")
"""What may be asked for; `auto` goes by the devices."""


def attention(
    q: Float[Array, "R Q H E"],
    k: Float[Array, "R S K E"],
    v: Float[Array, "R S K E"],
    query: Span,
    key: Span,
    window: Int[Array, ""] | int,
    *,
    scale: float,
    softcap: float | None = None,
    aligned: bool,
    kernel: str = "auto",
) -> Float[Array, "R Q H E"]:
    """softmax(scale · q·k, capped to ±softcap, where visible) · v, with G query heads a key head.

    Scores and softmax are float32. No kernel holds the scores of a row, forward or backward.

    Args:
      q: queries, rotated.
      k: keys, rotated.
      v: values.
      query: where the queries stand.
      key: where the keys stand.
      window: positions that a query looks back, itself included; may be traced.
      scale: multiplies the scores.
      softcap: scores become softcap · tanh(scores / softcap).
      aligned: query i and key i are the same token, and a row keeps each sequence in one piece and
        in order, those that share a beginning side by side, so that what lies after a block of
        queries, and before its first query's sequence and window, is never visible.
      kernel: one of `KERNELS`, see `chosen`.

    Raises:
      UserError: cuDNN was asked for where there is none.
    """
    use = chosen(kernel, q, query, window, softcap, aligned=aligned)
    places, shape = jax.tree.flatten((query, key))
    interpret = platform() != "tpu"
    queries, keys = q.shape[1], k.shape[1]
    known = window if isinstance(window, int) else None

    def run(q: Array, k: Array, v: Array, window: Array, number: Array, *places: Array) -> Array:
        query, key = jax.tree.unflatten(shape, places)
        k, v = (gathered(x, 1, "length", keys) for x in (k, v))
        first = 0 if q.shape[1] == queries else number[0]
        if use == "splash":
            far = window if known is None else known
            return splash.splash(
                *(q, k, v, key, far, first), scale=scale, softcap=softcap, interpret=interpret
            )
        if use == "cudnn":
            try:
                return cudnn.cudnn(q, k, v, query, key, window, scale=scale)
            except (NotImplementedError, RuntimeError) as error:
                if kernel == "cudnn":
                    raise UserError(
                        f"model.attention='cudnn': {error}; set it to 'auto'"
                    ) from error
                logging.getLogger(__name__).warning("attention without cuDNN: %s", error)
        return tiles(
            *(q, k, v, query, key, window, first if aligned else None), scale=scale, softcap=softcap
        )

    # Rows and heads are independent: a partitioner left to itself gathers all heads of a row.
    rows, length = at = TOKENS if aligned else STEPS
    heads, kv_heads = (*at, "heads", None), (*at, "kv_heads", None)
    many = len(jax.tree.leaves(query)), len(jax.tree.leaves(key))
    return local(
        run,
        *(q, k, v, jnp.asarray(window, jnp.int32), jnp.arange(queries, dtype=jnp.int32), *places),
        inputs=(
            *(heads, kv_heads, kv_heads, (), (length,)),
            *([at] * many[0] + [(rows, None)] * many[1]),
        ),
        output=heads,
    )


def chosen(
    kernel: str,
    q: jax.ShapeDtypeStruct | Array,
    query: Span,
    window: Array | int,
    softcap: float | None,
    *,
    aligned: bool,
) -> str:
    """The kernel of a call, by the devices that its program is compiled for.

    Those are the mesh's (`jax.set_mesh`), which need not be there. What the kernel does not cover
    is left to `tiles`: decoding, longer rows, soft caps on a GPU, and on a TPU windows where
    answers share their prompt, and beyond 32,768 tokens such answers and windows that differ.

    Args:
      kernel: one of `KERNELS`; `splash` on devices that are no TPUs runs in Pallas' interpreter,
        which is for tests.
      q: queries.
      query: where they stand.
      window: how far they look back.
      softcap: of the scores.
      aligned: query i and key i are the same token.

    Raises:
      UserError: `cudnn` on devices that are no GPUs.
    """
    devices = platform()
    if kernel == "cudnn" and devices != "gpu":
        raise UserError(f"model.attention='cudnn': there is none on a {devices}; set it to 'auto'")
    if kernel == "auto":
        kernel = {"tpu": "splash", "gpu": "cudnn"}.get(devices, "tiles")
    if kernel == "splash" and splash.covers(q.shape[1], query, window, aligned=aligned):
        return "splash"
    if kernel == "cudnn" and cudnn.covers(q, softcap, aligned=aligned):
        return "cudnn"
    return "tiles"
