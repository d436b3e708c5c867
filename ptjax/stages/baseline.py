"""What unpaired rewards are compared with: KTO's divergence, BCO's running mean."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.losses.unpaired import kl_baseline
from ptjax.stages.base import Context, Stage
from ptjax.types import Batch, Params

_PREFIX = "kl_"


def _kto_baseline(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """kl = max(0, mean log-ratio of prompts with others' completions) over the whole batch.

    KTO (2402.01306, section 4.1). The mismatched columns have served and leave the batch.
    """
    other = {k.removeprefix(_PREFIX): v for k, v in batch.items() if k.startswith(_PREFIX)}
    batch = {name: column for name, column in batch.items() if not name.startswith(_PREFIX)}
    policy = ctx.policy(other, ("logps",)).logps
    reference = other.get("ref_logps")
    if reference is None:
        reference = ctx.reference(other, ("logps",)).logps
    kl = _mean_ratio(policy, reference, batch["weights"])
    ctx.logged["baseline"] = kl
    return batch | {"baseline": jnp.broadcast_to(kl, batch["weights"].shape[:1])}, carry


@jax.jit
def _mean_ratio(policy: Array, reference: Array, weights: Array) -> Array:
    # A weight is for the loss: the divergence is that of all real examples alike.
    real = (weights > 0).astype(jnp.float32)
    return kl_baseline(jnp.sum(policy - reference, -1), real)


def _bco_baseline(
    ctx: Context, batch: Batch, carry: dict[str, Array], *, beta: float = 0.1
) -> tuple[Batch, dict[str, Array]]:
    """δ: the mean of β · log-ratio over all examples so far, this batch's included.

    BCO (2404.04656, section 3.2). A batch whose ratios are not finite is not remembered; a held-out
    one is compared with the mean as it stands.
    """
    if not ctx.training:
        shift = carry["total"] / jnp.maximum(carry["count"], 1)
        return batch | {"baseline": jnp.broadcast_to(shift, batch["weights"].shape[:1])}, carry
    policy = ctx.policy(batch, ("logps",)).logps
    shift, moved = _running(carry, policy, batch["ref_logps"], batch["weights"], beta=beta)
    ctx.logged["delta"] = shift
    return batch | {"baseline": jnp.broadcast_to(shift, batch["weights"].shape[:1])}, moved


@functools.partial(jax.jit, static_argnames="beta")
def _running(
    carry: dict[str, Array], policy: Array, reference: Array, weights: Array, *, beta: float
) -> tuple[Array, dict[str, Array]]:
    real = weights > 0
    rewards = beta * jnp.sum(jnp.where(real[..., None], policy - reference, 0), -1)
    total, count = jnp.sum(rewards), jnp.sum(real)
    finite = jnp.isfinite(total)
    moved = {
        "total": carry["total"] + jnp.where(finite, total, 0),
        "count": carry["count"] + jnp.where(finite, count, 0),
    }
    return moved["total"] / jnp.maximum(moved["count"], 1), moved


def _nothing_yet(trained: Params) -> dict[str, Array]:
    return {"total": jnp.float32(0), "count": jnp.int32(0)}


kto_baseline = Stage(
    "kto_baseline", _kto_baseline, writes={"baseline": "B"}, reference=True, passes=2
)

bco_baseline = Stage(
    "bco_baseline", _bco_baseline, writes={"baseline": "B"}, passes=1, begin=_nothing_yet
)
