"""What the vocabulary says of each token, in chunks: the logits of a batch never exist at once.

Tokens that nobody asks about are moved to the end first and their chunks are skipped, so the head
costs what the trained tokens cost. Shapes: S batch shards, M tokens of a shard, C tokens of a
chunk, D embed, V vocabulary.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FIELDS = ("logps", "logsumexp", "mean_logps", "entropy", "sum_squares", "correct")
Stats = dict[str, Float[Array, "S M"]]


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
    chunk = min(chunk, hidden.shape[1])
    order = jnp.argsort(~scored, axis=1, stable=True)
    back = jnp.argsort(order, axis=1)

    def compact(x: Array) -> Array:
        index = order.reshape(order.shape + (1,) * (x.ndim - 2))
        x = jnp.take_along_axis(x, index, axis=1)
        padding = -x.shape[1] % chunk
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    trips = -(-jnp.max(jnp.sum(scored, axis=1)) // chunk)
    static = _Static(fields, vocab_first, softcap, temperature, chunk)
    arrays = (compact(hidden), kernel, compact(targets), trips)
    stats: Any
    if linear is None:
        stats = _recompute(static, *arrays)
    else:
        stats = _eager(static, *arrays, compact(jnp.where(scored, linear, 0)))

    def spread(x: Array) -> Array:
        return jnp.where(scored, jnp.take_along_axis(x, back, axis=1), 0)

    return {name: spread(value) for name, value in stats.items()}


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


def _project(static: _Static, hidden: Array, kernel: Array) -> Float[Array, "S C V"]:
    """Raw float32 logits of one chunk."""
    contract = (((2,), (1 if static.vocab_first else 0,)), ((), ()))
    kernel = kernel.astype(hidden.dtype)
    return jax.lax.dot_general(hidden, kernel, contract, preferred_element_type=jnp.float32)


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


def _slice(x: Array, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)


def _put(x: Array, part: Array, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), i * chunk, axis=1)


def _put_all(stats: Stats, parts: Mapping[str, Array], i: Array, chunk: int) -> Stats:
    return {name: _put(stats[name], parts[name], i, chunk) for name in stats}


def _zeros(static: _Static, targets: Array) -> Stats:
    return {name: jnp.zeros(targets.shape, jnp.float32) for name in static.fields}


def _forward(static: _Static, hidden: Array, kernel: Array, targets: Array, trips: Array) -> Stats:
    chunk = static.chunk

    def body(i: Array, stats: Stats) -> Stats:
        h, t = _slice(hidden, i, chunk), _slice(targets, i, chunk)
        return _put_all(stats, _reduce(static, _project(static, h, kernel), t), i, chunk)

    return jax.lax.fori_loop(0, trips, body, _zeros(static, targets))


def _gradients(
    static: _Static,
    hidden: Array,
    kernel: Array,
    targets: Array,
    trips: Array,
    cotangents: Mapping[str, Array],
    wants_kernel: bool,
) -> tuple[Stats, Array, Array | None]:
    """The fields and their gradients, chunk by chunk.

    The kernel's gradient is summed in float32 a shard, and over shards only once, at the end.
    """
    vocab_first, chunk = static.vocab_first, static.chunk
    shards = hidden.shape[0]
    sums = jnp.zeros((shards, *kernel.shape), jnp.float32) if wants_kernel else None

    def body(i: Array, carry: tuple) -> tuple:
        stats, d_hidden, d_kernel = carry
        h, t = _slice(hidden, i, chunk), _slice(targets, i, chunk)
        given = {name: _slice(ct, i, chunk) for name, ct in cotangents.items()}
        logits = _project(static, h, kernel)
        parts, vjp = jax.vjp(lambda logits: _reduce(static, logits, t), logits)
        d_logits = vjp(given)[0].astype(h.dtype)
        contract = (((2,), (0 if vocab_first else 1,)), ((), ()))
        d_h = jax.lax.dot_general(d_logits, kernel.astype(h.dtype), contract)
        if d_kernel is not None:
            pair = (d_logits, h) if vocab_first else (h, d_logits)
            over_tokens = (((1,), (1,)), ((0,), (0,)))
            d_kernel += jax.lax.dot_general(*pair, over_tokens, preferred_element_type=jnp.float32)
        return _put_all(stats, parts, i, chunk), _put(d_hidden, d_h, i, chunk), d_kernel

    start = (_zeros(static, targets), jnp.zeros_like(hidden), sums)
    stats, d_hidden, d_kernel = jax.lax.fori_loop(0, trips, body, start)
    if d_kernel is not None:
        d_kernel = jnp.sum(d_kernel, axis=0).astype(kernel.dtype)
    return stats, d_hidden, d_kernel


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
    cotangents = jax.tree.map(_dense, cotangents, is_leaf=_is_symbolic)
    hidden, kernel, targets, trips = values
    _, d_hidden, d_kernel = _gradients(
        static, hidden, kernel, targets, trips, cotangents, "kernel" in asked
    )
    return d_hidden, d_kernel, None, None


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


def _dense(x: Any) -> Array:
    return jnp.zeros(x.shape, x.dtype) if _is_symbolic(x) else x


_recompute.defvjp(_recompute_fwd, _recompute_bwd, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _eager(
    static: _Static, hidden: Array, kernel: Array, targets: Array, trips: Array, weights: Array
) -> Stats:
    """Fields whose gradient, up to one scalar, is computed with them."""
    return _forward(static, hidden, kernel, targets, trips)


def _eager_fwd(static: _Static, hidden: Any, kernel: Any, targets: Any, trips: Any, weights: Any):
    values = hidden.value, kernel.value, targets.value, trips.value
    zeros = _zeros(static, values[2])
    stats, d_hidden, d_kernel = _gradients(
        static, *values, {**zeros, "logps": weights.value}, kernel.perturbed
    )
    return stats, (d_hidden, d_kernel, weights.value)


def _eager_bwd(_: _Static, saved: Any, cotangents: Stats):
    d_hidden, d_kernel, weights = saved
    given = _dense(cotangents["logps"])
    square = jnp.sum(weights * weights)
    scale = jnp.sum(given * weights) / jnp.where(square == 0, 1, square)
    d_kernel = None if d_kernel is None else (d_kernel * scale).astype(d_kernel.dtype)
    return (d_hidden * scale).astype(d_hidden.dtype), d_kernel, None, None, None


_eager.defvjp(_eager_fwd, _eager_bwd, symbolic_zeros=True)
