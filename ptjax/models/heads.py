"""What a decoder ends in: logits over the vocabulary, scores, values.

Shapes: R rows, L tokens a row, D embed, V vocabulary; S shards of M tokens in chunked projections.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ptjax.errors import UserError
from ptjax.models import families
from ptjax.models.body import Body
from ptjax.models.compute import DEFAULT, Compute
from ptjax.ops.chunks import projection_axes
from ptjax.ops.divergence import Teacher, token_divergence
from ptjax.ops.logprobs import token_stats
from ptjax.ops.span import Span
from ptjax.sharding import constrain
from ptjax.types import Weights

HEADS = ("lm", "score", "lm_value", "lm_critic")
"""What a decoder ends in: logits over the vocabulary, one number a token, or both.

Both: `lm_value` reads them from one body, `lm_critic` has a second body for the number: the leaves
`critic.*` of the same dict.
"""


class Head(NamedTuple):
    """The output projection: logits = hidden · kernelᵀ, capped to ±softcap where there is one."""

    kernel: Float[Array, "V D"] | Float[Array, "D V"]
    vocab_first: bool
    softcap: float | None


@dataclass(frozen=True)
class Heads(Body):
    """A body and what reads its hidden states."""

    def projection(self, params: Weights) -> Head:
        """The output projection, tied to the embeddings or its own.

        Raises:
          UserError: a model whose scalar head took the projection's place.
        """
        if self.config.tied:
            return Head(params["embed"], True, self.config.logit_softcap)
        if self.head == "score":
            raise UserError("a model with a scalar head has no log-probs: load it with head='lm'")
        return Head(params["head"], False, self.config.logit_softcap)

    def scores(self, params: Weights, hidden: Float[Array, "R L D"]) -> Float[Array, "R L"]:
        """The scalar head: hidden · score, in float32 whatever the dtype of the hidden states.

        Raises:
          UserError: a model without one.
        """
        if self.head != "score":
            raise UserError("scores need a model with a scalar head: load it with head='score'")
        return _scalar(hidden, params["score"])

    def values(
        self,
        params: Weights,
        hidden: Float[Array, "R L D"],
        tokens: Int[Array, "R L"],
        span: Span,
        *,
        compute: Compute = DEFAULT,
        key: Array | None = None,
    ) -> Float[Array, "R L"]:
        """What a value head says of the text up to each token, that token included; float32.

        Args:
          params: all leaves.
          hidden: what `hidden` gave; a second body has its own.
          tokens: token ids.
          span: positions and segments.
          compute: of a second body.
          key: randomness of a second body; None for evaluation.

        Raises:
          UserError: a model without one.
        """
        if self.head == "lm_value":
            return _scalar(hidden, params["value"])
        if self.head != "lm_critic":
            raise UserError("values need a value head: load it with head='lm_value' or 'lm_critic'")
        critic = replace(self, head="score")
        own = {
            name.removeprefix(families.CRITIC): leaf
            for name, leaf in params.items()
            if name.startswith(families.CRITIC)
        }
        key = None if key is None else jax.random.fold_in(key, 0)
        return critic.scores(own, critic.hidden(own, tokens, span, compute=compute, key=key))

    def logits(self, params: Weights, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states: for sampling and tests; training never calls it."""
        kernel, vocab_first, softcap = self.projection(params)
        out = jax.lax.dot_general(
            hidden,
            kernel.astype(hidden.dtype),
            (((hidden.ndim - 1,), (1 if vocab_first else 0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return out if softcap is None else softcap * jnp.tanh(out / softcap)

    def stats(
        self,
        params: Weights,
        hidden: Float[Array, "S M D"],
        targets: Int[Array, "S M"],
        scored: Bool[Array, "S M"],
        **asked: Any,
    ) -> dict[str, Float[Array, "S M"]]:
        """What the head says of each target: `ops.logprobs.token_stats`, with its settings."""
        kernel, vocab_first, softcap = self.projection(params)
        # On a mesh it is gathered once, not once a chunk.
        whole: Any = _whole(kernel.astype(hidden.dtype), vocab_first)
        return token_stats(
            hidden, whole, targets, scored, vocab_first=vocab_first, softcap=softcap, **asked
        )

    def divergence(
        self,
        params: Weights,
        hidden: Float[Array, "S M D"],
        teacher_hidden: Float[Array, "S M E"],
        scored: Bool[Array, "S M"],
        teacher: Teacher,
        **asked: Any,
    ) -> Float[Array, "S M"]:
        """How far the head is from a teacher's: `ops.divergence.token_divergence`."""
        kernel, vocab_first, softcap = self.projection(params)
        # On a mesh both are gathered once, not once a chunk.
        whole: Any = _whole(kernel.astype(hidden.dtype), vocab_first)
        taught: Any = _whole(teacher.kernel.astype(teacher_hidden.dtype), teacher.vocab_first)
        return token_divergence(
            *(hidden, whole, teacher_hidden, replace(teacher, kernel=taught), scored),
            vocab_first=vocab_first,
            softcap=softcap,
            **asked,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(kernel: Array, vocab_first: bool) -> Array:
    """An output projection on the mesh, split over the vocabulary alone.

    Its gradient lies as the kernel itself does: a constraint's own transpose would have every
    device keep all of it.
    """
    return constrain(kernel, *(("vocab", None) if vocab_first else (None, "vocab")))


def _whole_fwd(kernel: Array, vocab_first: bool) -> tuple[Array, None]:
    return _whole(kernel, vocab_first), None


def _whole_bwd(vocab_first: bool, _: None, gradient: Array) -> tuple[Array]:
    return (constrain(gradient, *projection_axes(vocab_first=vocab_first)),)


_whole.defvjp(_whole_fwd, _whole_bwd)


def _scalar(hidden: Float[Array, "R L D"], kernel: Float[Array, "D 1"]) -> Float[Array, "R L"]:
    # On a mesh every device has the whole kernel: a product and a sum that fuse.
    kernel = constrain(kernel.astype(jnp.float32), None, None)
    return jnp.sum(hidden.astype(jnp.float32) * kernel[:, 0], axis=-1)
