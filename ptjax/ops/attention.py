"""Exact attention with segments, windows and soft caps, in blocks of queries, behind one signature.

Scores exist for one block of queries at a time, forward and backward: memory grows with L, not L².
The products are laid out so that every large matrix is read and written in its own row order.

Shapes: R rows, Q queries, S keys, H query heads, K key heads, G = H / K, E head_dim, M = G · block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from ptjax.sharding import local

ATTENDED = "attended"
"""The name under which attention's result is known to the rematerialisation policies."""
MIN_BLOCK, MAX_BLOCKS = 128, 8
_NEVER = float(jnp.finfo(jnp.float32).min)


class Span(NamedTuple):
    """Where tokens stand: positions in their own sequence, and which sequence (0 = padding)."""

    positions: Int[Array, "R L"]
    segments: Int[Array, "R L"]


class _Static(NamedTuple):
    scale: float
    softcap: float | None
    aligned: bool


def visible(query: Span, key: Span, window: Int[Array, ""] | int) -> Bool[Array, "R Q S"]:
    """Which keys a query sees: its own sequence, not after it, less than `window` back."""
    distance = query.positions[:, :, None] - key.positions[:, None, :]
    same = query.segments[:, :, None] == key.segments[:, None, :]
    return same & (distance >= 0) & (distance < window)


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
) -> Float[Array, "R Q H E"]:
    """softmax(scale · q·k, capped to ±softcap, where visible) · v, with G query heads a key head.

    Scores and softmax are float32. The backward pass computes the scores again (2205.14135).

    Args:
      q: queries, rotated.
      k: keys, rotated.
      v: values.
      query: where the queries stand.
      key: where the keys stand.
      window: positions that a query looks back, itself included; may be traced.
      scale: multiplies the scores.
      softcap: scores become softcap · tanh(scores / softcap).
      aligned: query i and key i are the same token, and a row keeps its sequences in order, so that
        keys after a block of queries are never visible and are skipped.
    """
    static = _Static(scale, softcap, aligned)

    def run(q, k, v, query_at, query_of, key_at, key_of, window):
        spans = Span(query_at, query_of), Span(key_at, key_of)
        return _attention(static, q, k, v, *spans, window)

    # Rows and heads are independent: a partitioner left to itself gathers all heads of a row.
    heads, kv_heads = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    return local(
        run,
        *(q, k, v, *query, *key, jnp.asarray(window, jnp.int32)),
        inputs=(heads, kv_heads, kv_heads, *[("batch", None)] * 4, ()),
        output=heads,
    )


def _blocks(static: _Static, queries: int, keys: int) -> list[tuple[int, int, int]]:
    """(first query, past the last query, keys to look at) of each block."""
    size = max(MIN_BLOCK, -(-queries // MAX_BLOCKS))
    starts = range(0, queries, size)
    ends = [min(start + size, queries) for start in starts]
    return [(a, b, b if static.aligned else keys) for a, b in zip(starts, ends, strict=True)]


def _heads_first(x: Array, groups: int) -> Array:
    """[R, L, K·G, E] -> [R·K, G, L, E]."""
    rows, length, heads, width = x.shape
    x = x.reshape(rows, length, heads // groups, groups, width).transpose(0, 2, 3, 1, 4)
    return x.reshape(rows * (heads // groups), groups, length, width)


def _heads_last(x: Array, rows: int) -> Array:
    """[R·K, G, L, E] -> [R, L, K·G, E]."""
    _, groups, length, width = x.shape
    x = x.reshape(rows, -1, groups, length, width).transpose(0, 3, 1, 2, 4)
    return x.reshape(rows, length, -1, width)


def _scores(
    static: _Static, q: Array, k_t: Array, mask: Array
) -> tuple[Float[Array, "RK M S"], Float[Array, "RK M S"]]:
    """Scores before and after the mask, both after the cap."""
    scores = jnp.matmul(q, k_t, preferred_element_type=jnp.float32)
    if static.softcap is not None:
        scores = static.softcap * jnp.tanh(scores / static.softcap)
    rows, block, keys = mask.shape
    heads, groups = q.shape[0] // rows, q.shape[1] // block
    shown = scores.reshape(rows, heads, groups, block, keys)
    shown = jnp.where(mask[:, None, None], shown, _NEVER)
    return scores, shown.reshape(scores.shape)


def _block(x: Array, a: int, b: int) -> Array:
    """Rows a to b of [RK, G, L, E] as one matrix a head: [RK, G · (b - a), E]."""
    return x[:, :, a:b].reshape(x.shape[0], -1, x.shape[-1])


def _forward(static: _Static, q, k, v, query: Span, key: Span, window: Array):
    rows, queries, heads, width = q.shape
    groups = heads // k.shape[2]
    q = _heads_first(q * static.scale, groups)
    k_t = _heads_first(k, 1)[:, 0].swapaxes(1, 2)
    v = _heads_first(v, 1)[:, 0]
    outs, sums = [], []
    for a, b, keys in _blocks(static, queries, k.shape[1]):
        mask = visible(_cut(query, a, b), _cut(key, 0, keys), window)
        _, scores = _scores(static, _block(q, a, b), k_t[:, :, :keys], mask)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.matmul(weights.astype(v.dtype), v[:, :keys]) / total.astype(v.dtype)
        outs.append(out.reshape(-1, groups, b - a, width))
        sums.append((top + jnp.log(total)).reshape(-1, groups, b - a, 1))
    return _heads_last(jnp.concatenate(outs, 2), rows), jnp.concatenate(sums, 2)


def _cut(span: Span, a: int, b: int) -> Span:
    return Span(span.positions[:, a:b], span.segments[:, a:b])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: _Static, q, k, v, query: Span, key: Span, window: Array):
    return _forward(static, q, k, v, query, key, window)[0]


def _attention_fwd(static: _Static, q, k, v, query: Span, key: Span, window: Array):
    made = _forward(static, q, k, v, query, key, window)
    out, sums = (checkpoint_name(x, ATTENDED) for x in made)
    return out, (q, k, v, query, key, window, out, sums)


def _attention_bwd(static: _Static, saved, d_out):
    q, k, v, query, key, window, out, sums = saved
    rows, queries, heads, width = q.shape
    groups = heads // k.shape[2]
    inner = jnp.sum((d_out * out).astype(jnp.float32), axis=-1, keepdims=True)
    inner, d_out = _heads_first(inner, groups), _heads_first(d_out, groups)
    q = _heads_first(q * static.scale, groups)
    k, v = _heads_first(k, 1)[:, 0], _heads_first(v, 1)[:, 0]
    k_t, v_t = k.swapaxes(1, 2), v.swapaxes(1, 2)
    d_k, d_v = jnp.zeros(k_t.shape, jnp.float32), jnp.zeros(k_t.shape, jnp.float32)
    d_q = []
    for a, b, keys in _blocks(static, queries, k.shape[1]):
        mask = visible(_cut(query, a, b), _cut(key, 0, keys), window)
        q_block, d_block = _block(q, a, b), _block(d_out, a, b)
        raw, scores = _scores(static, q_block, k_t[:, :, :keys], mask)
        weights = jnp.exp(scores - _block(sums, a, b))
        d_weights = jnp.matmul(d_block, v_t[:, :, :keys], preferred_element_type=jnp.float32)
        d_scores = weights * (d_weights - _block(inner, a, b))
        if static.softcap is not None:
            d_scores = d_scores * (1 - jnp.square(raw / static.softcap))
        low = d_scores.astype(k.dtype)
        d_v = d_v.at[:, :, :keys].add(jnp.matmul(d_block.swapaxes(1, 2), weights.astype(v.dtype)))
        d_k = d_k.at[:, :, :keys].add(jnp.matmul(q_block.swapaxes(1, 2), low))
        d_q.append((jnp.matmul(low, k[:, :keys]) * static.scale).reshape(-1, groups, b - a, width))
    d_q = _heads_last(jnp.concatenate(d_q, 2), rows)

    def back(x: Array) -> Array:
        return _heads_last(x.swapaxes(1, 2)[:, None], rows).astype(k.dtype)

    return d_q, back(d_k), back(d_v), None, None, None


_attention.defvjp(_attention_fwd, _attention_bwd)
