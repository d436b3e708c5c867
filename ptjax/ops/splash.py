"""jax's splash attention, a Pallas kernel of TPUs, where every token sees a run of its row's keys.

Its masks are known when a program is compiled: of a causal window, say. Here what differs between
tokens is data instead, in the place where the kernel expects a query's number: a code that says
from which key to which the query sees, and a function that reads it. So one kernel serves layers of
any window under a scan; and it skips blocks of keys that no query of a block sees, those of other
sequences of a packed row included, which its own causal mask would compute.

A code has room for the keys of a row of 32,768. In a longer one it is the query's number alone, and
ids that the kernel compares keep a query to its own sequence.

A shared beginning is a second run of keys. The keys then stand twice, first as beginnings, then as
what they are; ids that the kernel compares keep a query to its own group, and one bit of the code
says that it sees its group's beginning. Nothing of a row's keys is written twice but k and v.

Shapes: R rows, Q queries in N blocks, L keys, H query heads, K key heads, E head_dim; C blocks of
keys, those of copies included.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ptjax.ops.span import ATTENDED, Span, padded, padded_span, run_starts

BITS = 15
"""Of a code that say where a run of keys begins, and of those that say where it ends."""
_LOW = 2**BITS - 1
_SHARES = -(2**31)
_BLOCKS = (128, 256, 512)
_LONGEST = 2**17
"""Tokens of a row: what is said of pairs of blocks lies in the scalars' memory."""


def covers(length: int, query: Span, window: Array | int, *, aligned: bool) -> bool:
    """Whether the kernel can say what these tokens see.

    Args:
      length: tokens of a row, at most 131,072; of one longer than 32,768, neither windows that
        differ between layers nor beginnings that are shared.
      query: where they stand. Where beginnings are shared, a window would have to be told apart in
        two runs of keys, for which a code has no room.
      window: how far they look back; traced where layers differ.
      aligned: query i and key i are the same token.
    """
    known = isinstance(window, int)
    if length > 2**BITS:
        return aligned and known and query.leads is None and length <= _LONGEST
    return aligned and (query.leads is None or (known and window >= length))


@dataclass(frozen=True)
class _Seen:
    """Which keys a query sees, by its code; keys before `own` are copies, for beginnings."""

    own: int

    def __call__(self, code: Array, key: Array) -> Array:
        first, last = (code >> (BITS + 1)) & _LOW, code & _LOW
        place = key - self.own
        return ((place >= first) & (place <= last)) | ((place < 0) & (code < 0))


@dataclass(frozen=True)
class _Within:
    """Which keys a query sees, its number being its code, of those with its id."""

    window: int

    def __call__(self, code: Array, key: Array) -> Array:
        return (key <= code) & (code - key < self.window)


def splash(
    q: Float[Array, "R Q H E"],
    k: Float[Array, "R L K E"],
    v: Float[Array, "R L K E"],
    span: Span,
    window: Int[Array, ""] | int,
    first: Int[Array, ""] | int,
    *,
    scale: float,
    softcap: float | None,
    interpret: bool,
) -> Float[Array, "R Q H E"]:
    """Attention as `ops.attention.attention` says, of what `covers` covers, on one device.

    Padding sees padding that stands before it; no one reads what it gets.

    Args:
      q: queries.
      k: keys.
      v: values.
      span: where the keys stand.
      window: how far a query looks back.
      first: the key that the first query is; the others follow.
      scale: of the scores.
      softcap: of the scores.
      interpret: whether the kernel runs in Pallas' interpreter, which needs no TPU.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as pallas
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks

    length = q.shape[1]
    # Large blocks are quicker; at most an eighth of them may be padding.
    block = max(b for b in _BLOCKS if b == _BLOCKS[0] or -length % b * 8 <= length)
    long = k.shape[1] + -k.shape[1] % block
    span = padded_span(span, long)
    q = padded(q * scale, length + -length % block).swapaxes(1, 2)
    k, v = (padded(x, long).swapaxes(1, 2) for x in (k, v))

    def of_queries(x: Array) -> Array:
        """Of keys' numbers the queries' own; what fills their last block has the last one's."""
        x = jax.lax.dynamic_slice_in_dim(x, first, length, axis=1)
        return jnp.pad(x, ((0, 0), (0, -length % block)), mode="edge")

    begin, end = map(of_queries, _reach(span, window))
    needed = _seen_blocks(begin, end, block, long)
    if k.shape[2] > 2**BITS:
        seen, codes = _Within(int(window)), end
        opens = run_starts(span.segments)
        ids = pallas.SegmentIds(of_queries(opens), opens)
    elif span.leads is not None and span.begins is not None:
        seen, codes = _Seen(long), begin << (BITS + 1) | end
        k, v = (jnp.concatenate([x, x], axis=2) for x in (k, v))
        opens = run_starts(span.leads)
        group, begins = of_queries(opens), of_queries(span.begins)
        codes = jnp.where(begins > 0, codes | _SHARES, codes)
        ids = pallas.SegmentIds(group, _key_ids(opens, span.begins))
        needed = jnp.concatenate([_begun(group, begins, block, long), needed], axis=1)
    else:
        seen, codes, ids = _Seen(0), begin << (BITS + 1) | end, None
    # Both lie in the scalars' memory, which is small.
    marked = needed[None].astype(jnp.int8)
    forward, backward = (_next(needed, axis)[None].astype(jnp.int16) for axis in (1, 0))

    sizes = pallas.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def row(q: Array, k: Array, v: Array, code: Any, ids: Any) -> Any:
        mask = masks.MaskInfo(forward, None, marked, None, code)
        kernel = pallas.SplashAttentionKernel(
            mask,
            mask,
            mask._replace(data_next=backward),
            block_sizes=sizes,
            is_mqa=False,
            save_residuals=False,
            mask_value=pallas.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name=ATTENDED,
            mask_function=seen,
            interpret=interpret,
        )
        return kernel(q, k, v, ids)

    return jax.vmap(row)(q, k, v, codes, ids).swapaxes(1, 2)[:, :length]


def _reach(span: Span, window: Array | int) -> tuple[Int[Array, "R L"], Int[Array, "R L"]]:
    """The first and the last key that each token sees of its own sequence."""
    last = jnp.arange(span.segments.shape[1], dtype=jnp.int32)
    first = jnp.maximum(run_starts(span.segments), last - window + 1)
    return first, jnp.broadcast_to(last, first.shape)


def _seen_blocks(
    first: Int[Array, "R Q"], last: Int[Array, "R Q"], block: int, keys: int
) -> Bool[Array, "N C"]:
    """The blocks of keys that hold what queries of a block see of their own; in any row.

    What a block's first query sees begins before what its others see, and its last ends last.
    """
    earliest = jnp.min(first[:, ::block], axis=0)[:, None]
    latest = jnp.max(last[:, block - 1 :: block], axis=0)[:, None]
    starts = jnp.arange(0, keys, block, dtype=jnp.int32)
    return (starts + block > earliest) & (starts <= latest)


def _key_ids(opens: Int[Array, "R L"], begins: Int[Array, "R L"]) -> Int[Array, "R 2*L"]:
    """Of the copies the beginning that its group shares, then all keys: where the group opens.

    How long a group's beginning is, stands behind it: the maximum from the right, in which a group
    further left wins over those further right.
    """
    column = jnp.arange(opens.shape[1], dtype=jnp.int32)
    ranked = (_LOW - opens) << (BITS + 1) | begins
    shared = jax.lax.cummax(ranked, axis=1, reverse=True) & (2 ** (BITS + 1) - 1)
    return jnp.concatenate([jnp.where(column - opens < shared, opens, -1), opens], axis=1)


def _begun(
    opens: Int[Array, "R Q"], begins: Int[Array, "R Q"], block: int, keys: int
) -> Bool[Array, "N C"]:
    """The blocks of copies with what queries of a block share, and those between; in any row."""
    rows, length = opens.shape

    def cut(x: Array) -> Array:
        return x.reshape(rows, -1, block).swapaxes(0, 1).reshape(length // block, -1)

    shares = begins > 0
    first = jnp.min(cut(jnp.where(shares, opens, keys)), axis=1)[:, None]
    end = jnp.max(cut(jnp.where(shares, opens + begins, 0)), axis=1)[:, None]
    starts = jnp.arange(0, keys, block, dtype=jnp.int32)
    return (starts + block > first) & (starts < end)


def _next(needed: Bool[Array, "N C"], axis: int) -> Int[Array, "N C"]:
    """The block to fetch at each turn: the next that is needed, behind the last the last again."""
    number = jax.lax.broadcasted_iota(jnp.int32, needed.shape, axis)
    none = needed.shape[axis]
    later = jax.lax.cummin(jnp.where(needed, number, none), axis=axis, reverse=True)
    before = jax.lax.cummax(jnp.where(needed, number, 0), axis=axis)
    return jnp.where(later < none, later, before)
