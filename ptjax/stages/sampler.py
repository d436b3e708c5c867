"""A sampler that lags behind: answers of a policy that is some updates old."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptjax.errors import UserError
from ptjax.stages.base import Context, Stage
from ptjax.stages.reference import copied
from ptjax.types import Batch, Params

_NAME = "sampler"

Carry = dict[str, Any]


def sampled_by(ctx: Context) -> Params | None:
    """The trained leaves that answers are sampled with; None for those of the policy itself."""
    lagging = ctx.carry.get(_NAME) if ctx.training else None
    return None if lagging is None else lagging["trained"]


def _sampler(
    ctx: Context, batch: Batch, carry: Carry, *, sampler_every: int = 1
) -> tuple[Batch, Carry]:
    """Gives the sampler the policy's parameters once they are `sampler_every` updates newer.

    What asynchronous training meets, and what importance weights are for: the loss's `correction`.
    """
    if not ctx.training:
        return batch, carry
    age = ctx.step - int(carry["step"])
    if age >= sampler_every:
        step = jax.device_put(np.int32(ctx.step), carry["step"].sharding)
        age, carry = 0, {"trained": copied(ctx.trained), "step": step}
    ctx.logged["rollout/staleness"] = age
    return batch, carry


def _wanted(*, sampler_every: int = 1) -> bool:
    if sampler_every < 1:
        raise UserError(f"hparams.sampler_every = {sampler_every}: it must be at least 1")
    return sampler_every > 1


def _begin(trained: Params) -> Carry:
    return {"trained": copied(trained), "step": jnp.int32(0)}


sampler = Stage(_NAME, _sampler, wanted=_wanted, begin=_begin)
"""Before `rollout`; its copy of the trained leaves is kept in checkpoints."""
