"""What logged completions are compared with: the running mean of their rewards."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.stages.base import Context, Stage
from ptjax.types import Batch, Params

Moments = dict[str, Array]


def _logged_advantage(
    ctx: Context, batch: Batch, carry: Moments, *, standardized: bool = True
) -> tuple[Batch, Moments]:
    """Adds `advantages`: (R - mean) / std over all completions so far, this batch's included.

    AWR (1910.00177) learns a value function; a mean is what is left of it where each prompt has one
    completion.
    """
    found, moved = _compared(carry, batch["scores"], batch["weights"], standardized)
    ctx.logged["reward/mean"] = jnp.copy(moved["mean"])  # the step takes the carry's own buffer
    advantages = found[..., None] * batch["mask"]
    return batch | {"advantages": advantages}, moved


def _dro_baseline(
    ctx: Context, batch: Batch, carry: Moments, *, temperature: float = 1.0
) -> tuple[Batch, Moments]:
    """Adds `baseline`: V, the mean of R - τ log p / p_ref over all completions so far.

    DRO (2405.19107) learns V(x) by least squares; of a constant V this mean is the solution.
    """
    policy = ctx.policy(batch, ("logps",)).logps
    ratio = _summed(policy, batch["ref_logps"], batch["mask"])
    moved = moments(carry, batch["scores"] - temperature * ratio, batch["weights"])
    value = jnp.copy(moved["mean"])  # the step takes the carry's own buffer
    ctx.logged["value"] = value
    column = jnp.broadcast_to(value, batch["weights"].shape[:1])
    return batch | {"baseline": column}, moved


@jax.jit
def _summed(logps: Array, ref_logps: Array, mask: Array) -> Array:
    return jnp.sum(jnp.where(mask == 0, 0, logps - ref_logps), -1)


@jax.jit
def moments(before: Moments, values: Float[Array, "B N"], weights: Float[Array, "B N"]) -> Moments:
    """Count, mean and sum of squared distances from it, of what was and of this batch together.

    Chan et al. 1979: exact however batches are cut. A batch that is not finite is not remembered.

    Args:
      before: of all before.
      values: of this batch.
      weights: 0 for filler; a weight is for the loss, real ones count alike.
    """
    real = weights > 0
    count = jnp.sum(real)
    mean = jnp.sum(jnp.where(real, values, 0)) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(real, jnp.square(values - mean), 0))
    total = before["count"] + count
    gap = mean - before["mean"]
    after = {
        "count": total,
        "mean": before["mean"] + gap * count / jnp.maximum(total, 1),
        "squares": before["squares"]
        + squares
        + jnp.square(gap) * before["count"] * count / jnp.maximum(total, 1),
    }
    finite = jnp.isfinite(mean) & jnp.isfinite(squares)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)


@functools.partial(jax.jit, static_argnums=3)
def _compared(
    before: Moments, rewards: Array, weights: Array, standardized: bool
) -> tuple[Array, Moments]:
    now = moments(before, rewards, weights)
    gap = jnp.where(weights > 0, rewards - now["mean"], 0)
    if standardized:
        gap = gap / (jnp.sqrt(now["squares"] / jnp.maximum(now["count"] - 1, 1)) + 1e-4)
    return gap, now


def _nothing_yet(trained: Params) -> Moments:
    return {"count": jnp.int32(0), "mean": jnp.float32(0), "squares": jnp.float32(0)}


logged_advantage = Stage(
    "logged_advantage",
    _logged_advantage,
    writes={"advantages": "B N T"},
    begin=_nothing_yet,
)

dro_baseline = Stage(
    "dro_baseline", _dro_baseline, writes={"baseline": "B"}, passes=1, begin=_nothing_yet
)
