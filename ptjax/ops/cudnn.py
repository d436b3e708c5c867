"""cuDNN's flash attention on GPUs, by jax, where it covers a call.

It knows no packed rows but by a mask of all queries and keys, one byte and a bias of two a pair in
a row: that much for one layer at a time is what its speed costs, so rows have a limit.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ptjax.ops.span import ATTENDED, Span, visible

LONGEST = 4096
"""Tokens of a row: 32 MiB of bias."""


def covers(q: jax.ShapeDtypeStruct | Array, softcap: float | None, *, aligned: bool) -> bool:
    """Whether cuDNN computes it: half precision, no soft cap, rows of an even length."""
    length, width = q.shape[1], q.shape[3]
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = length % 2 == 0 and length <= LONGEST and width % 8 == 0 and width <= 256
    return aligned and half and softcap is None and fits


def cudnn(
    q: Float[Array, "R Q H E"],
    k: Float[Array, "R S K E"],
    v: Float[Array, "R S K E"],
    query: Span,
    key: Span,
    window: Int[Array, ""],
    *,
    scale: float,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Float[Array, "R Q H E"]:
    """Attention as `ops.attention.attention` says, of what `covers` covers, on one device.

    Nothing of it is kept for the backward pass but what it is given: the mask is large.

    Args:
      q: queries.
      k: keys.
      v: values.
      query: where the queries stand.
      key: where the keys stand.
      window: how far a query looks back.
      scale: of the scores.
      implementation: jax's name for who computes it.

    Raises:
      NotImplementedError: a GPU, or a version of cuDNN, that cannot.
      RuntimeError: no cuDNN.
    """

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attend(q: Array, k: Array, v: Array, query: Span, key: Span, window: Array) -> Array:
        mask = visible(query, key, window)[:, None]
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, scale=scale, implementation=implementation
        )

    return checkpoint_name(attend(q, k, v, query, key, window), ATTENDED)
