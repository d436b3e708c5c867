"""The output projection over chunks of tokens: only one chunk's logits exist at a time.

Tokens that nobody asks about are moved to the end first and their chunks are skipped. What is made
of a chunk's logits is a function `reduce`; its gradient is taken chunk by chunk, too. Shapes: S
batch shards, M tokens of a shard, C tokens of a chunk, D embed, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ptjax.sharding import constrain

LOOP = "head_chunks"
"""What loops over chunks are called in a compiled program."""
Stats = dict[str, Float[Array, "S M"]]
Reduce = Callable[[Array, Float[Array, "S C V"]], Stats]
"""`(number of the chunk, its raw logits) -> fields`, [S, C] each."""


class Order:
    """The tokens of each shard, those asked about first, in whole chunks.

    Attributes:
      chunk: tokens of a chunk.
      trips: int32, chunks that hold a token that was asked about.
    """

    def __init__(self, scored: Bool[Array, "S M"], chunk: int):
        self.chunk = min(chunk, scored.shape[1])
        self.trips = -(-jnp.max(jnp.sum(scored, axis=1)) // self.chunk)
        self._scored = scored
        self._order = jnp.argsort(~scored, axis=1, stable=True)
        self._back = jnp.argsort(self._order, axis=1)

    def compact(self, x: Array) -> Array:
        """[S, M, ...] -> the same in order, padded to whole chunks."""
        index = self._order.reshape(self._order.shape + (1,) * (x.ndim - 2))
        x = jnp.take_along_axis(x, index, axis=1)
        padding = -x.shape[1] % self.chunk
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    def spread(self, x: Float[Array, "S P"]) -> Float[Array, "S M"]:
        """The inverse of `compact`; 0 where nobody asked."""
        return jnp.where(self._scored, jnp.take_along_axis(x, self._back, axis=1), 0)


def project(hidden: Array, kernel: Array, *, vocab_first: bool) -> Float[Array, "S C V"]:
    """Raw float32 logits of one chunk."""
    contract = (((2,), (1 if vocab_first else 0,)), ((), ()))
    kernel = kernel.astype(hidden.dtype)
    return jax.lax.dot_general(hidden, kernel, contract, preferred_element_type=jnp.float32)


def projection_axes(*, vocab_first: bool) -> tuple[str, str]:
    """The logical axes of an output projection."""
    return ("vocab", "embed") if vocab_first else ("embed", "vocab")


def chunk_of(x: Array, i: Array, chunk: int) -> Array:
    """The i-th chunk of [S, M, ...]."""
    return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)


def fields_of_chunks(
    reduce: Reduce,
    fields: tuple[str, ...],
    hidden: Array,
    kernel: Array,
    trips: Array,
    *,
    vocab_first: bool,
    chunk: int,
) -> Stats:
    """The fields of all tokens.

    Args:
      reduce: what a chunk's logits come to.
      fields: the names that it gives.
      hidden: [S, M, D], M whole chunks.
      kernel: [V, D] if `vocab_first`, else [D, V].
      trips: chunks to go through; the rest of every field is 0.
      vocab_first: the kernel's layout.
      chunk: C.
    """

    def body(i: Array, stats: Stats) -> Stats:
        logits = project(chunk_of(hidden, i, chunk), kernel, vocab_first=vocab_first)
        return _put_all(stats, reduce(i, logits), i, chunk)

    with jax.named_scope(LOOP):
        return jax.lax.fori_loop(0, trips, body, zeros(fields, hidden))


def gradients_of_chunks(
    reduce: Reduce,
    hidden: Array,
    kernel: Array,
    trips: Array,
    cotangents: Mapping[str, Array],
    *,
    wants_kernel: bool,
    vocab_first: bool,
    chunk: int,
) -> tuple[Stats, Array, Array | None]:
    """The fields and their gradients by hidden states and kernel, chunk by chunk.

    The kernel's gradient is summed in float32 a shard, and over shards only once, at the end, when
    each device keeps the part that it has of the kernel.

    Args:
      reduce: what a chunk's logits come to.
      hidden: [S, M, D], M whole chunks.
      kernel: [V, D] if `vocab_first`, else [D, V].
      trips: chunks to go through.
      cotangents: of each field, [S, M].
      wants_kernel: whether the kernel's gradient is asked for.
      vocab_first: the kernel's layout.
      chunk: C.
    """
    shards = hidden.shape[0]
    sums = jnp.zeros((shards, *kernel.shape), jnp.float32) if wants_kernel else None

    def body(i: Array, carry: tuple) -> tuple:
        stats, d_hidden, d_kernel = carry
        h = chunk_of(hidden, i, chunk)
        given = {name: chunk_of(ct, i, chunk) for name, ct in cotangents.items()}
        logits = project(h, kernel, vocab_first=vocab_first)
        parts, vjp = jax.vjp(lambda logits: reduce(i, logits), logits)
        d_logits = vjp(given)[0].astype(h.dtype)
        contract = (((2,), (0 if vocab_first else 1,)), ((), ()))
        d_h = jax.lax.dot_general(d_logits, kernel.astype(h.dtype), contract)
        if d_kernel is not None:
            pair = (d_logits, h) if vocab_first else (h, d_logits)
            over_tokens = (((1,), (1,)), ((0,), (0,)))
            d_kernel += jax.lax.dot_general(*pair, over_tokens, preferred_element_type=jnp.float32)
        return _put_all(stats, parts, i, chunk), _put(d_hidden, d_h, i, chunk), d_kernel

    start = (zeros(tuple(cotangents), hidden), jnp.zeros_like(hidden), sums)
    with jax.named_scope(LOOP):
        stats, d_hidden, d_kernel = jax.lax.fori_loop(0, trips, body, start)
    if d_kernel is not None:
        d_kernel = constrain(jnp.sum(d_kernel, axis=0), *projection_axes(vocab_first=vocab_first))
        d_kernel = d_kernel.astype(kernel.dtype)
        # Its sums of each shard, as large as the kernel, are gone before the layers' turn.
        d_hidden, d_kernel = jax.lax.optimization_barrier((d_hidden, d_kernel))
    return stats, d_hidden, d_kernel


def zeros(fields: tuple[str, ...], hidden: Array) -> Stats:
    """Every field, of no token yet."""
    return {name: jnp.zeros(hidden.shape[:2], jnp.float32) for name in fields}


def is_symbolic(x: Any) -> bool:
    """Whether a cotangent is a zero that was never made."""
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


def dense(x: Any) -> Array:
    """A cotangent as an array."""
    return jnp.zeros(x.shape, x.dtype) if is_symbolic(x) else x


def _put(x: Array, part: Array, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), i * chunk, axis=1)


def _put_all(stats: Stats, parts: Mapping[str, Array], i: Array, chunk: int) -> Stats:
    return {name: _put(stats[name], parts[name], i, chunk) for name in stats}
