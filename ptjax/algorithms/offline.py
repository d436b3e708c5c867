"""Policy gradients from logged completions with rewards: advantage-weighted regression, DRO."""

import jax.numpy as jnp

from ptjax.algorithms.base import Algorithm
from ptjax.errors import UserError
from ptjax.losses import offline
from ptjax.losses.kl import k3
from ptjax.losses.nll import nll
from ptjax.stages.logged import dro_baseline, logged_advantage
from ptjax.stages.reference import ref_logps, synced_reference
from ptjax.types import Batch, Mean, Outputs

Made = tuple[Mean, dict[str, Mean]]


def awr(
    outputs: Outputs, batch: Batch, *, temperature: float = 1.0, weight_cap: float = 20.0
) -> Made:
    """L = -Σ min(exp(A/β), cap) log p / tokens: imitation of what turned out well (1910.00177).

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`, `advantages`.
      temperature: β, on the scale of advantages.
      weight_cap: greatest weight of a completion.
    """
    tokens = batch["mask"] * batch["weights"][..., None]
    settings = {"temperature": temperature, "cap": weight_cap}
    values = offline.awr(outputs.logps, batch["advantages"], **settings)
    weights = offline.awr_weight(batch["advantages"], **settings)
    capped = batch["advantages"] / temperature >= jnp.log(weight_cap)
    return Mean.of(values, tokens), {
        "nll": Mean.of(nll(outputs.logps), tokens),
        "weight": Mean.of(weights, tokens),
        "capped": Mean.of(capped.astype(jnp.float32), tokens),
    }


def dro(outputs: Outputs, batch: Batch, *, temperature: float = 1.0) -> Made:
    """L = mean over completions of ½ (R - V - τ log p / p_ref)²: DRO (2405.19107).

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`, `scores`, `ref_logps`, `baseline` (V).
      temperature: τ, in reward a nat.
    """
    mask, weights = batch["mask"], batch["weights"]
    ratio = jnp.sum(jnp.where(mask == 0, 0, outputs.logps - batch["ref_logps"]), -1)
    values = offline.dro(
        ratio, batch["scores"], batch["baseline"][:, None], temperature=temperature
    )
    drift = k3(outputs.logps, batch["ref_logps"])
    return Mean.of(values, weights), {
        "logratio": Mean.of(ratio, weights),
        "residual": Mean.of(
            jnp.abs(batch["scores"] - batch["baseline"][:, None] - temperature * ratio), weights
        ),
        "kl": Mean.of(drift, mask * weights[..., None]),
    }


def _needs(*, temperature: float, weight_cap: float = 20.0) -> tuple[str, ...]:
    if not temperature > 0:
        raise UserError(f"hparams.temperature = {temperature}: it must be positive")
    if not weight_cap > 0:
        raise UserError(f"hparams.weight_cap = {weight_cap}: it must be positive")
    return ("logps",)


AWR = Algorithm(awr, (logged_advantage,), needs=_needs, data="rated")
DRO = Algorithm(dro, (synced_reference, ref_logps, dro_baseline), needs=_needs, data="rated")
