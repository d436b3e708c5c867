"""What the vocabulary says of each token, in chunks: the logits of a batch never exist at once.

The head costs what the trained tokens cost: `ptjax.ops.chunks` skips the others. Shapes: S batch
shards, M tokens of a shard, C tokens of a chunk, D embed, V vocabulary.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ptjax.ops.chunks import (
    Order,
    Reduce,
    Stats,
    chunk_of,
    dense,
    fields_of_chunks,
    gradients_of_chunks,
    is_symbolic,
    zeros,
)

FIELDS = ("logps", "logsumexp", "mean_logps", "entropy", "sum_squares", "correct")


def token_stats(
    hidden: Float[Array, "S M D"],
    kernel: Float[Array, "V D"] | Float[Array, "D V"],
    targets: Int[Array, "S M"],
    scored: Bool[Array, "S M"],
    *,
    fields: tuple[str, ...] = ("logps",),
    vocab_first: bool = False,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
    linear: Float[Array, "S M"] | None = None,
) -> Stats:
    """Statistics of softmax(cap(hidden · kernel) / temperature) at each target, float32.

    Args:
      hidden: the state that predicts each target.
      kernel: the output projection, [V, D] if `vocab_first`, else [D, V].
      targets: token ids.
      scored: where to compute; elsewhere every field is 0 and nothing is computed.
      fields: which of `FIELDS`.
      vocab_first: the kernel's layout.
      softcap: logits are softcap · tanh(logits / softcap).
      temperature: divides the logits.
      chunk: tokens of a shard whose logits exist at one time.
      linear: a promise that the loss is c · Σ linear · logps for some scalar c, and reads no other
        field: the gradient is then computed with the forward pass, saving one projection of four.

    Returns:
      The fields asked for, [S, M] each.
    """
    order = Order(scored, chunk)
    static = _Static(fields, vocab_first, softcap, temperature, order.chunk)
    arrays = (order.compact(hidden), kernel, order.compact(targets), order.trips)
    stats: Any
    if linear is None:
        stats = _recompute(static, *arrays)
    else:
        stats = _eager(static, *arrays, order.compact(jnp.where(scored, linear, 0)))
    return {name: order.spread(value) for name, value in stats.items()}


def logit_stats(
    logits: Float[Array, "S M V"],
    targets: Int[Array, "S M"],
    scored: Bool[Array, "S M"],
    *,
    fields: tuple[str, ...] = ("logps",),
    temperature: float = 1.0,
) -> Stats:
    """The same statistics where a model gives its logits and no head: all of them exist at once.

    Args:
      logits: of each target's distribution.
      targets: token ids.
      scored: elsewhere every field is 0.
      fields: which of `FIELDS`.
      temperature: divides the logits.
    """
    static = _Static(fields, False, None, temperature, logits.shape[1])
    stats = _reduce(static, logits.astype(jnp.float32), targets)
    return {name: jnp.where(scored, value, 0) for name, value in stats.items()}


class _Static(NamedTuple):
    """The settings that are constant under jit."""

    fields: tuple[str, ...]
    vocab_first: bool
    softcap: float | None
    temperature: float
    chunk: int


def _reduce(static: _Static, logits: Float[Array, "S C V"], targets: Array) -> Stats:
    """The fields of one chunk, [S, C] each, from its raw logits."""
    fields, _, softcap, temperature, _ = static
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if temperature != 1.0:
        logits = logits / temperature
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    normaliser = top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
    # A sum over a comparison, not a gather: it stays local where the vocabulary is sharded.
    at_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2) == targets[..., None]
    picked = jnp.sum(jnp.where(at_target, logits, 0), axis=-1)
    below = logits - normaliser[..., None]
    made = {
        "logps": lambda: picked - normaliser,
        "logsumexp": lambda: normaliser,
        "mean_logps": lambda: jnp.mean(logits, axis=-1) - normaliser,
        "correct": lambda: (picked >= top).astype(jnp.float32),
        "entropy": lambda: -jnp.sum(jnp.exp(below) * below, axis=-1),
        "sum_squares": lambda: jax.nn.logsumexp(2 * below, axis=-1),
    }
    return {name: made[name]() for name in fields}


def _by_chunk(static: _Static, targets: Array) -> Reduce:
    """`_reduce` of a chunk's logits."""
    return lambda i, logits: _reduce(static, logits, chunk_of(targets, i, static.chunk))


def _forward(static: _Static, hidden: Array, kernel: Array, targets: Array, trips: Array) -> Stats:
    return fields_of_chunks(
        *(_by_chunk(static, targets), static.fields, hidden, kernel, trips),
        vocab_first=static.vocab_first,
        chunk=static.chunk,
    )


def _gradients(
    static: _Static,
    hidden: Array,
    kernel: Array,
    targets: Array,
    trips: Array,
    cotangents: Mapping[str, Array],
    wants_kernel: bool,
) -> tuple[Stats, Array, Array | None]:
    return gradients_of_chunks(
        *(_by_chunk(static, targets), hidden, kernel, trips, cotangents),
        wants_kernel=wants_kernel,
        vocab_first=static.vocab_first,
        chunk=static.chunk,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recompute(
    static: _Static, hidden: Array, kernel: Array, targets: Array, trips: Array
) -> Stats:
    """Fields whose backward pass computes the logits again."""
    return _forward(static, hidden, kernel, targets, trips)


def _recompute_fwd(static: _Static, hidden: Any, kernel: Any, targets: Any, trips: Any):
    values = hidden.value, kernel.value, targets.value, trips.value
    asked = {"kernel": ()} if kernel.perturbed else {}
    return _forward(static, *values), (values, asked)


def _recompute_bwd(static: _Static, saved: Any, cotangents: dict[str, Any]):
    values, asked = saved
    cotangents = jax.tree.map(dense, cotangents, is_leaf=is_symbolic)
    hidden, kernel, targets, trips = values
    _, d_hidden, d_kernel = _gradients(
        static, hidden, kernel, targets, trips, cotangents, "kernel" in asked
    )
    return d_hidden, d_kernel, None, None


_recompute.defvjp(_recompute_fwd, _recompute_bwd, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _eager(
    static: _Static, hidden: Array, kernel: Array, targets: Array, trips: Array, weights: Array
) -> Stats:
    """Fields whose gradient, up to one scalar, is computed with them."""
    return _forward(static, hidden, kernel, targets, trips)


def _eager_fwd(static: _Static, hidden: Any, kernel: Any, targets: Any, trips: Any, weights: Any):
    values = hidden.value, kernel.value, targets.value, trips.value
    nothing = zeros(static.fields, values[0])
    stats, d_hidden, d_kernel = _gradients(
        static, *values, {**nothing, "logps": weights.value}, kernel.perturbed
    )
    return stats, (d_hidden, d_kernel, weights.value)


def _eager_bwd(_: _Static, saved: Any, cotangents: Stats):
    d_hidden, d_kernel, weights = saved
    given = dense(cotangents["logps"])
    square = jnp.sum(weights * weights)
    scale = jnp.sum(given * weights) / jnp.where(square == 0, 1, square)
    d_kernel = None if d_kernel is None else (d_kernel * scale).astype(d_kernel.dtype)
    return (d_hidden * scale).astype(d_hidden.dtype), d_kernel, None, None, None


_eager.defvjp(_eager_fwd, _eager_bwd, symbolic_zeros=True)
