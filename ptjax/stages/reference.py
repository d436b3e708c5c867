"""The reference model: the frozen start of the policy, or one that follows it; its log-probs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.stages.base import Context, Stage
from ptjax.types import Batch, Params

_FOLLOWS = "synced_reference"


def followed(ctx: Context) -> Params | None:
    """The leaves of a reference that follows the policy; None where it stays as it was."""
    return ctx.carry.get(_FOLLOWS)


def _synced_reference(
    ctx: Context,
    batch: Batch,
    carry: Params,
    *,
    sync_every: int = 0,
    sync_alpha: float = 0.6,
) -> tuple[Batch, Params]:
    """Every `sync_every` steps, ref <- α · policy + (1 - α) · ref: TR-DPO (2404.09656).

    Equations 4 and 5: α = 1 is the hard update.
    """
    if ctx.training and ctx.step and ctx.step % sync_every == 0:
        carry = _mix(carry, ctx.trained, sync_alpha)
    return batch, carry


def _ref_logps(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Adds `ref_logps`."""
    outputs = ctx.reference(batch, ("logps",), trained=followed(ctx))
    return batch | {"ref_logps": outputs.logps}, carry


@functools.partial(jax.jit, static_argnums=2)
def _mix(reference: Params, policy: Params, alpha: float) -> Params:
    def one(ref: Array, new: Array) -> Array:
        mixed = alpha * new.astype(jnp.float32) + (1 - alpha) * ref.astype(jnp.float32)
        return mixed.astype(ref.dtype)

    return jax.tree.map(one, reference, policy)


def copied(trained: Params) -> Params:
    """The leaves once more: what a step donates does not take them along."""
    return jax.tree.map(jnp.copy, trained)


ref_logps = Stage("ref_logps", _ref_logps, writes={"ref_logps": "B N T"}, reference=True, passes=1)
"""Where the reference never moves, its log-probs may come from a cache instead."""

synced_reference = Stage(
    _FOLLOWS,
    _synced_reference,
    reference=True,
    wanted=lambda *, sync_every: sync_every > 0,
    begin=copied,
)
"""The reference follows the policy where `sync_every` is set: it is kept in the carry."""

iterated_reference = dataclasses.replace(
    synced_reference, run=functools.partial(_synced_reference, sync_alpha=1.0)
)
"""The reference becomes the policy whenever an iteration of `sync_every` steps is over."""
