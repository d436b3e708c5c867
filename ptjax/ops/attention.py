"""Attention with segments, windows and soft caps, behind one signature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Span(NamedTuple):
    """Where tokens stand: their positions in their own sequence, and which sequence (0 = padding)."""

    positions: Int[Array, "R L"]
    segments: Int[Array, "R L"]


def visible(
    query: Span, key: Span, window: int | Int[Array, ""]
) -> Bool[Array, "R Q S"]:
    """Which keys a query sees: its own sequence, not after it, fewer than `window` positions back."""
    distance = query.positions[:, :, None] - key.positions[:, None, :]
    same = query.segments[:, :, None] == key.segments[:, None, :]
    return same & (distance >= 0) & (distance < window)


def attention(
    q: Float[Array, "R Q H D"],
    k: Float[Array, "R S K D"],
    v: Float[Array, "R S K D"],
    mask: Bool[Array, "R Q S"],
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "R Q H D"]:
    """softmax(scale · q·k, capped to ±softcap, where visible) · v, with H/K query heads a key head.

    Scores and softmax are float32; a query that sees nothing (padding) gets the mean of v.
    """
    rows, length, heads, width = q.shape
    groups = heads // k.shape[2]
    q = (q * scale).reshape(rows, length, k.shape[2], groups, width)
    scores = jnp.einsum("rqkgd,rskd->rkgqs", q, k, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("rkgqs,rskd->rqkgd", weights, v)
    return out.reshape(rows, length, heads, width)
