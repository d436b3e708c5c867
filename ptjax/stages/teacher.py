"""What a teacher says of a batch: its hidden states, or how it would have gone on."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.stages.base import Context, Stage
from ptjax.types import Batch


def _teacher_hidden(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Adds `teacher_hidden`: the reference's final hidden states, in the dtype it computes in."""
    return batch | {"teacher_hidden": ctx.reference(batch, ("hidden",)).hidden}, carry


def _teacher_advantage(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Adds `advantages`: A_t = log p_T - log p_S of each token that the policy itself wrote.

    -A_t is one sample of KL(S ‖ T) at that place; its policy gradient is that divergence's, of the
    place alone. GKD with β = 1 on the policy's own answers (2306.13649), one token for the sum over
    the vocabulary.
    """
    old = batch["old_logps"] if "old_logps" in batch else batch["sampler_logps"]
    teacher = ctx.reference(batch, ("logps",)).logps
    advantages, kl = _gaps(teacher, old, batch["mask"], batch["weights"])
    ctx.logged["teacher/kl"] = kl
    return batch | {"advantages": advantages}, carry


@jax.jit
def _gaps(teacher: Array, old: Array, mask: Array, weights: Array) -> tuple[Array, Array]:
    """Advantages, and the mean of what they take away over the tokens that count."""
    tokens = mask * (weights > 0)[..., None]
    gaps = jnp.where(tokens == 0, 0, teacher - old)
    return gaps, -jnp.sum(gaps) / jnp.maximum(jnp.sum(tokens), 1)


teacher_hidden = Stage(
    "teacher_hidden",
    _teacher_hidden,
    writes={"teacher_hidden": "B N T E"},
    reference=True,
    passes=1,
)

teacher_advantage = Stage(
    "teacher_advantage",
    _teacher_advantage,
    writes={"advantages": "B N T"},
    reference=True,
    passes=1,
)
"""After the answers and their log-probs."""
