"""Coefficients that follow what they are to control: of KL, of the entropy bonus."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.stages.base import Context, Stage
from ptjax.types import Batch, Params

Coefficient = dict[str, Array]
_STARTED = "started"
_COEF = "coefficient"
_MOST = 0.2  # of the error that the controller of KL answers at once


def _kl_control(
    ctx: Context,
    batch: Batch,
    carry: Coefficient,
    *,
    beta: float = 0.0,
    kl_target: float | None = None,
    kl_horizon: int = 10_000,
) -> tuple[Batch, Coefficient]:
    """Adds `kl_coef`: β now; then β <- β (1 + clip(KL / target - 1, ±0.2) n / horizon).

    Ziegler et al. (1909.08593, section 2.2). KL is Σ_t (log p - log p_ref) of a completion, in nats
    a completion, the mean over the n real ones of the rollout.
    """
    old = batch["old_logps"] if "old_logps" in batch else batch["sampler_logps"]
    now = jnp.where(carry[_STARTED] > 0, carry[_COEF], beta)
    measured, moved = _next_kl(
        now, old, batch["ref_logps"], batch["mask"], batch["weights"], kl_target, kl_horizon
    )
    ctx.logged["kl/sequence"] = measured
    ctx.logged["kl/coef"] = now
    column = jnp.broadcast_to(now, batch["weights"].shape[:1])
    return batch | {"kl_coef": column}, {_COEF: moved, _STARTED: jnp.maximum(carry[_STARTED], 1)}


@jax.jit
def _next_kl(
    coefficient: Array,
    logps: Array,
    ref_logps: Array,
    mask: Array,
    weights: Array,
    target: Array,
    horizon: Array,
) -> tuple[Array, Array]:
    tokens = mask * (weights > 0)[..., None]
    count = jnp.sum(weights > 0)
    mean = jnp.sum(jnp.where(tokens == 0, 0, logps - ref_logps)) / jnp.maximum(count, 1)
    error = jnp.clip(mean / target - 1, -_MOST, _MOST)
    moved = coefficient * (1 + error * count / horizon)
    return mean, jnp.where(jnp.isfinite(moved) & (count > 0), moved, coefficient)


def _entropy_control(
    ctx: Context,
    batch: Batch,
    carry: Coefficient,
    *,
    entropy_coef: float = 0.0,
    entropy_target: float | None = None,
    entropy_step: float = 0.005,
    entropy_coef_max: float = 1.0,
) -> tuple[Batch, Coefficient]:
    """Adds `entropy_coef`: α; then α a step up where entropy is at or below its target, else down.

    Skywork-OR1 (2505.22312, section 3.2.5): the bonus is on only while entropy is at or below the
    target. Entropy is the mean over the rollout's tokens, in nats.
    """
    was = jnp.where(carry[_STARTED] > 0, carry[_COEF], entropy_coef)
    tokens = batch["mask"] * (batch["weights"] > 0)[..., None]
    mean, moved, applied = _next_entropy(
        was, batch["old_entropy"], tokens, entropy_target, entropy_step, entropy_coef_max
    )
    ctx.logged["entropy/rollout"] = mean
    ctx.logged["entropy/coef"] = applied
    column = jnp.broadcast_to(applied, batch["weights"].shape[:1])
    return batch | {"entropy_coef": column}, {
        _COEF: moved,
        _STARTED: jnp.maximum(carry[_STARTED], 1),
    }


@jax.jit
def _next_entropy(
    coefficient: Array, entropy: Array, tokens: Array, target: Array, step: Array, most: Array
) -> tuple[Array, Array, Array]:
    mean = jnp.sum(entropy * tokens) / jnp.maximum(jnp.sum(tokens), 1)
    low = mean <= target
    moved = jnp.clip(coefficient + jnp.where(low, step, -step), 0, most)
    moved = jnp.where(jnp.isfinite(mean) & (jnp.sum(tokens) > 0), moved, coefficient)
    return mean, moved, jnp.where(low, coefficient, 0)


def _not_started(trained: Params) -> Coefficient:
    return {_COEF: jnp.float32(0), _STARTED: jnp.float32(0)}


kl_control = Stage(
    "kl_control",
    _kl_control,
    writes={"kl_coef": "B"},
    wanted=lambda *, kl_target: kl_target is not None,
    begin=_not_started,
)

entropy_control = Stage(
    "entropy_control",
    _entropy_control,
    writes={"entropy_coef": "B"},
    wanted=lambda *, entropy_target: entropy_target is not None,
    begin=_not_started,
)
