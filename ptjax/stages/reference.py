"""Log-probs under the reference model: the frozen start of the policy, or one that follows it."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.stages.base import Context, Stage
from ptjax.types import Batch, Params


def _ref_logps(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Adds `ref_logps` under the reference as it was at the start."""
    return batch | {"ref_logps": ctx.reference(batch, ("logps",)).logps}, carry


def _synced_ref_logps(
    ctx: Context,
    batch: Batch,
    carry: Params,
    *,
    sync_every: int = 0,
    sync_alpha: float = 0.6,
) -> tuple[Batch, Params]:
    """Adds `ref_logps` under a reference that follows the policy: TR-DPO (2404.09656).

    Every `sync_every` steps, ref <- α · policy + (1 - α) · ref (equations 4 and 5: α = 1 is the
    hard update).
    """
    if ctx.training and ctx.step and ctx.step % sync_every == 0:
        carry = _mix(carry, ctx.trained, sync_alpha)
    outputs = ctx.reference(batch, ("logps",), trained=carry)
    return batch | {"ref_logps": outputs.logps}, carry


@functools.partial(jax.jit, static_argnums=2)
def _mix(reference: Params, policy: Params, alpha: float) -> Params:
    def one(ref: Array, new: Array) -> Array:
        mixed = alpha * new.astype(jnp.float32) + (1 - alpha) * ref.astype(jnp.float32)
        return mixed.astype(ref.dtype)

    return jax.tree.map(one, reference, policy)


def _copy(trained: Params) -> Params:
    return jax.tree.map(jnp.copy, trained)


ref_logps = Stage("ref_logps", _ref_logps, writes={"ref_logps": "B N T"}, reference=True, passes=1)
"""The reference never moves: its log-probs may come from a cache instead."""

synced_ref_logps = Stage(
    "synced_ref_logps",
    _synced_ref_logps,
    writes={"ref_logps": "B N T"},
    reference=True,
    passes=1,
    wanted=lambda *, sync_every: sync_every > 0,
    begin=_copy,
)
"""The reference follows the policy where `sync_every` is set: it is kept in the carry."""
