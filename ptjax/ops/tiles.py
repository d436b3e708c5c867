"""Exact attention with segments, windows and soft caps, tile by tile, for every kind of device.

Scores exist for one block of queries and one tile of keys at a time, forward and backward: memory
grows with L, not L². Tiles that no query of a block sees, because they hold other sequences or lie
before its window, are not computed. The products are laid out so that every large matrix is read
and written in its own row order.

Shapes: R rows, Q queries, S keys, H query heads, K key heads, G = H / K, E head_dim; N blocks of
queries, T tiles of keys, M = G · block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from ptjax.ops.span import ATTENDED, Span, padded, padded_span, visible

TILE = 128
"""Queries of a block and keys of a tile, at most; where no key is skipped a tile has all."""
_NEVER = float(jnp.finfo(jnp.float32).min)


class _Static(NamedTuple):
    scale: float
    softcap: float | None
    block: int
    tile: int


def tiles(
    q: Float[Array, "R Q H E"],
    k: Float[Array, "R S K E"],
    v: Float[Array, "R S K E"],
    query: Span,
    key: Span,
    window: Int[Array, ""],
    first: Int[Array, ""] | int | None,
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "R Q H E"]:
    """Attention as `ops.attention.attention` says, on one device.

    Where queries are keys too, tiles after a block of queries, and before its first query's
    sequence and window, are skipped. The backward pass computes the scores again (2205.14135).

    Args:
      q: queries.
      k: keys.
      v: values.
      query: where the queries stand.
      key: where the keys stand.
      window: how far a query looks back.
      first: the key that the first query is, the others following; None where queries are no keys.
      scale: of the scores.
      softcap: of the scores.
    """
    queries, keys = q.shape[1], k.shape[1]
    static = _Static(scale, softcap, _even(queries), keys if first is None else _even(keys))
    long = queries + -queries % static.block
    q, query = padded(q, long), padded_span(query, long)
    long = keys + -keys % static.tile
    k, v, key = padded(k, long), padded(v, long), padded_span(key, long)
    out: Array = _attention(static, q, k, v, query, key, window, first)
    return out[:, :queries]


def _even(length: int) -> int:
    """The size of as few parts as can be, of `TILE` at most and nearly alike."""
    return -(-length // -(-length // TILE))


def _cut(x: Array, size: int, groups: int = 1) -> Array:
    """[R, L, K·G, E] -> [N, R·K, G · size, E]: one matrix a block and key head."""
    rows, length, heads, width = x.shape
    blocks, kv_heads = length // size, heads // groups
    x = x.reshape(rows, blocks, size, kv_heads, groups, width).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(blocks, rows * kv_heads, groups * size, width)


def _join(x: Array, size: int, rows: int) -> Array:
    """[N, R·K, G · size, E] -> [R, L, K·G, E]."""
    blocks, both, many, width = x.shape
    x = x.reshape(blocks, rows, both // rows, many // size, size, width)
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(rows, blocks * size, -1, width)


def _cut_span(span: Span, size: int) -> Span:
    """[R, L] -> [N, R, size] of each."""
    rows = span.positions.shape[0]
    return jax.tree.map(lambda x: x.reshape(rows, -1, size).swapaxes(0, 1), span)


def _needed(
    static: _Static, query: Span, key: Span, window: Array, first: Array | int | None
) -> Bool[Array, "N T"]:
    """The tiles that each block of queries needs in any row.

    A sequence that reaches from an earlier tile into a block holds the tile's last key and the
    block's first query. What begins within the block needs earlier tiles only for a beginning that
    it shares, and then the block's first query is of a sequence that shares the same.
    """
    blocks, tiles = query.segments.shape[0], key.segments.shape[0]
    if first is None:
        return jnp.ones((blocks, tiles), bool)
    start = first + jnp.arange(blocks, dtype=jnp.int32)[:, None] * static.block
    tile = jnp.arange(tiles, dtype=jnp.int32) * static.tile
    last = tile + static.tile - 1
    segments = key.segments[None]
    needed = jnp.any(query.segments[:, None, :, 0] == segments[..., -1], axis=2)
    if query.leads is None or query.begins is None:
        needed &= start - last < window
    else:
        leads, begins = (x[:, None, :, :1] for x in (query.leads, query.begins))
        shared = (segments == leads) & (key.positions[None] < begins)
        needed |= jnp.any(shared, axis=(2, 3))
    return (needed | (last >= start)) & (tile < start + static.block)


def _over_tiles(needed: Bool[Array, " T"], query: Span, body: Any, carry: Any):
    """Runs `body(tile, carry)` over the tiles that a block of queries needs."""
    if len(needed) == 1:
        return body(0, carry)

    def tile(j: Any, carry: Any) -> Any:
        if query.leads is None:  # those from the first one on are needed without a gap
            return body(j, carry)
        return jax.lax.cond(needed[j], functools.partial(body, j), lambda carry: carry, carry)

    begin, behind = jnp.argmax(needed), len(needed) - jnp.argmax(needed[::-1])
    return jax.lax.fori_loop(begin, behind, tile, carry)


def _at(x: Any, index: Any) -> Any:
    """Entry `index` of the leading axis, of an array or of a span's two."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, keepdims=False), x)


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


def _forward(static: _Static, q, k, v, query: Span, key: Span, window: Array, first: Any):
    """The result [R, Q, H, E], and the log of each softmax's denominator [N, RK, M, 1]."""
    rows, groups = q.shape[0], q.shape[2] // k.shape[2]
    k_t = _cut(k, static.tile).swapaxes(2, 3)
    v = _cut(v, static.tile)
    query, key = _cut_span(query, static.block), _cut_span(key, static.tile)
    needed = _needed(static, query, key, window, first)

    def block(_: None, scanned: tuple) -> tuple[None, tuple[Array, Array]]:
        own, q_block, where = scanned

        def tile(j: Any, carry: tuple) -> tuple:
            top, total, out = carry
            mask = visible(where, _at(key, j), window)
            _, scores = _scores(static, q_block, _at(k_t, j), mask)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - higher), jnp.exp(top - higher)
            total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
            return higher, total, out * shrink + _wide(weights.astype(v.dtype), _at(v, j))

        column = jnp.zeros((*q_block.shape[:2], 1), jnp.float32)
        start = (column + _NEVER, column, jnp.zeros(q_block.shape, jnp.float32))
        top, total, out = _over_tiles(own, query, tile, start)
        return None, ((out / total).astype(q_block.dtype), top + jnp.log(total))

    q = _cut(q * static.scale, static.block, groups)
    _, (out, sums) = jax.lax.scan(block, None, (needed, q, query))
    return _join(out, static.block, rows), sums


def _wide(a: Array, b: Array) -> Array:
    """a · b, added up and returned in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: _Static, q, k, v, query: Span, key: Span, window: Array, first: Any):
    return _forward(static, q, k, v, query, key, window, first)[0]


def _attention_fwd(static: _Static, q, k, v, query: Span, key: Span, window: Array, first: Any):
    made = _forward(static, q, k, v, query, key, window, first)
    out, sums = (checkpoint_name(x, ATTENDED) for x in made)
    return out, (q, k, v, query, key, window, first, out, sums)


def _attention_bwd(static: _Static, saved, d_out):
    q, k, v, query, key, window, first, out, sums = saved
    # Where they are known, jax saves them as what are no arrays of its own.
    window, first = jax.tree.map(jnp.asarray, (window, first))
    rows, groups, dtype = q.shape[0], q.shape[2] // k.shape[2], k.dtype
    inner = jnp.sum((d_out * out).astype(jnp.float32), axis=-1, keepdims=True)
    blocks = [_cut(x, static.block, groups) for x in (q * static.scale, d_out, inner)]
    k, v = _cut(k, static.tile), _cut(v, static.tile)
    k_t, v_t = k.swapaxes(2, 3), v.swapaxes(2, 3)
    query, key = _cut_span(query, static.block), _cut_span(key, static.tile)
    needed = _needed(static, query, key, window, first)

    def block(sides: tuple[Array, Array], scanned: tuple) -> tuple[tuple, Array]:
        own, q_block, d_block, inner_block, sums_block, where = scanned

        def tile(j: Any, carry: tuple) -> tuple:
            d_k, d_v, d_q = carry
            mask = visible(where, _at(key, j), window)
            raw, scores = _scores(static, q_block, _at(k_t, j), mask)
            weights = jnp.exp(scores - sums_block)
            d_scores = weights * (_wide(d_block, _at(v_t, j)) - inner_block)
            if static.softcap is not None:
                d_scores = d_scores * (1 - jnp.square(raw / static.softcap))
            low = d_scores.astype(dtype)
            d_v = d_v.at[j].add(_wide(d_block.swapaxes(1, 2), weights.astype(dtype)))
            d_k = d_k.at[j].add(_wide(q_block.swapaxes(1, 2), low))
            return d_k, d_v, d_q + _wide(low, _at(k, j)) * static.scale

        start = (*sides, jnp.zeros(q_block.shape, jnp.float32))
        d_k, d_v, d_q = _over_tiles(own, query, tile, start)
        return (d_k, d_v), d_q.astype(dtype)

    zeros = jnp.zeros(k_t.shape, jnp.float32)
    (d_k, d_v), d_q = jax.lax.scan(block, (zeros, zeros), (needed, *blocks, sums, query))
    sides = (_join(x.swapaxes(2, 3), static.tile, rows).astype(dtype) for x in (d_k, d_v))
    return _join(d_q, static.block, rows), *sides, None, None, None, None


_attention.defvjp(_attention_fwd, _attention_bwd)
