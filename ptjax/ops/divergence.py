"""How far a student's next-token distributions are from a teacher's, in chunks of the head.

Neither model's logits of a batch exist at once; the gradient goes to the student alone. Shapes: S
batch shards, M tokens of a shard, C tokens of a chunk, D and E the widths of student and teacher, V
vocabulary.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ptjax.ops.chunks import (
    Order,
    Reduce,
    chunk_of,
    dense,
    fields_of_chunks,
    gradients_of_chunks,
    project,
)
from ptjax.types import Leaf

_FIELD = "divergence"


@dataclass(frozen=True)
class Divergence:
    """Which divergence.

    Attributes:
      beta: β of the generalised Jensen-Shannon divergence (GKD, 2306.13649, equation 1): 0 is
        KL(T ‖ S), 1 is KL(S ‖ T).
      top_k: the teacher's k most likely tokens stand for themselves (with those that tie with the
        k-th), all others together for one; 0: every token for itself. Never more than the
        divergence of all.
    """

    beta: float = 0.5
    top_k: int = 0


@flax.struct.dataclass
class Teacher:
    """The output projection of a teacher.

    Attributes:
      kernel: [V, E] if `vocab_first`, else [E, V].
      vocab_first: its layout.
      softcap: logits are softcap · tanh(logits / softcap); None: as they are.
    """

    kernel: Leaf
    vocab_first: bool = flax.struct.field(pytree_node=False, default=False)
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)


def token_divergence(
    hidden: Float[Array, "S M D"],
    kernel: Float[Array, "V D"] | Float[Array, "D V"],
    teacher_hidden: Float[Array, "S M E"],
    teacher: Teacher,
    scored: Bool[Array, "S M"],
    *,
    divergence: Divergence = Divergence(),
    vocab_first: bool = False,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
) -> Float[Array, "S M"]:
    """β KL(T ‖ M) + (1 - β) KL(S ‖ M), M = (1 - β) S + β T, of each token, in nats.

    At β = 0 and 1, where that is 0, it is KL(T ‖ S) and KL(S ‖ T) (2306.13649, section 2).

    Args:
      hidden: the student's state that predicts each token.
      kernel: its output projection, [V, D] if `vocab_first`, else [D, V].
      teacher_hidden: the teacher's state; gets no gradient.
      teacher: its output projection; gets no gradient.
      scored: where to compute; elsewhere it is 0 and nothing is computed.
      divergence: β, and how many tokens stand for themselves.
      vocab_first: the student's kernel's layout.
      softcap: the student's.
      temperature: divides the logits of both.
      chunk: tokens of a shard whose logits exist at one time.
    """
    order = Order(scored, chunk)
    static = _Static(
        *(divergence, temperature, order.chunk),
        *(vocab_first, softcap, teacher.vocab_first, teacher.softcap),
    )
    found: Any = _chunked(
        static,
        *(order.compact(hidden), kernel),
        *(order.compact(teacher_hidden), teacher.kernel, order.trips),
    )
    return order.spread(found)


def logit_divergence(
    student: Float[Array, "*T V"], teacher: Float[Array, "*T V"], divergence: Divergence
) -> Float[Array, "*T"]:
    """The same of logits that are there.

    Args:
      student: its logits, the temperature taken off.
      teacher: the same of the teacher.
      divergence: β, and how many tokens stand for themselves.
    """
    s, t = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    parts = _parts(s, t, divergence.beta)
    if not 0 < divergence.top_k < student.shape[-1]:
        return jnp.sum(parts, axis=-1)
    least = jax.lax.top_k(teacher, divergence.top_k)[0][..., -1:]
    rest = teacher < least
    some = jnp.any(rest, axis=-1)
    # Where all tie nothing is left over: a sum over everything keeps its gradient finite.
    over = rest | ~some[..., None]
    left_s, left_t = (jax.nn.logsumexp(jnp.where(over, x, -jnp.inf), axis=-1) for x in (s, t))
    bucket = jnp.where(some, _parts(left_s, left_t, divergence.beta), 0)
    return jnp.sum(jnp.where(rest, 0, parts), axis=-1) + bucket


def _parts(s: Array, t: Array, beta: float) -> Array:
    """What each outcome adds to the divergence, of log-probs s and t."""
    if beta == 0:
        return jnp.exp(t) * (t - s)
    if beta == 1:
        return jnp.exp(s) * (s - t)
    m = jnp.logaddexp(s + math.log1p(-beta), t + math.log(beta))
    return beta * jnp.exp(t) * (t - m) + (1 - beta) * jnp.exp(s) * (s - m)


class _Static(NamedTuple):
    """The settings that are constant under jit."""

    divergence: Divergence
    temperature: float
    chunk: int
    vocab_first: bool
    softcap: float | None
    teacher_vocab_first: bool
    teacher_softcap: float | None


def _reduce(static: _Static, teacher_hidden: Array, teacher_kernel: Array) -> Reduce:
    """The divergence of one chunk from the student's raw logits."""

    def scaled(logits: Array, softcap: float | None) -> Array:
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        return logits / static.temperature

    def reduce(i: Array, logits: Array) -> dict[str, Array]:
        h = chunk_of(teacher_hidden, i, static.chunk)
        raw = project(h, teacher_kernel, vocab_first=static.teacher_vocab_first)
        both = scaled(logits, static.softcap), scaled(raw, static.teacher_softcap)
        return {_FIELD: logit_divergence(*both, static.divergence)}

    return reduce


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    static: _Static,
    hidden: Array,
    kernel: Array,
    teacher_hidden: Array,
    teacher_kernel: Array,
    trips: Array,
) -> Array:
    """The divergence of all tokens; its backward pass computes both models' logits again."""
    reduce = _reduce(static, teacher_hidden, teacher_kernel)
    layout = {"vocab_first": static.vocab_first, "chunk": static.chunk}
    return fields_of_chunks(reduce, (_FIELD,), hidden, kernel, trips, **layout)[_FIELD]


def _chunked_fwd(static: _Static, *arrays: Any):
    values = tuple(array.value for array in arrays)
    asked = {"kernel": ()} if arrays[1].perturbed else {}
    return _chunked(static, *values), (values, asked)


def _chunked_bwd(static: _Static, saved: Any, cotangent: Any):
    (hidden, kernel, teacher_hidden, teacher_kernel, trips), asked = saved
    _, d_hidden, d_kernel = gradients_of_chunks(
        _reduce(static, teacher_hidden, teacher_kernel),
        *(hidden, kernel, trips, {_FIELD: dense(cotangent)}),
        wants_kernel="kernel" in asked,
        vocab_first=static.vocab_first,
        chunk=static.chunk,
    )
    return d_hidden, d_kernel, None, None, None


_chunked.defvjp(_chunked_fwd, _chunked_bwd, symbolic_zeros=True)
