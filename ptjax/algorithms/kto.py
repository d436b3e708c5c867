"""Judgements of single answers, desirable or not: KTO, BCO, APO-zero."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ptjax.algorithms.base import Algorithm
from ptjax.algorithms.by_length import correlations
from ptjax.algorithms.pairs import SATURATED, drift
from ptjax.errors import UserError
from ptjax.losses import unpaired
from ptjax.stages.baseline import bco_baseline, kto_baseline
from ptjax.stages.reference import ref_logps
from ptjax.types import Batch, Derived, Mean, Outputs

Made = tuple[Mean, dict[str, Mean]]


def kto(
    outputs: Outputs,
    batch: Batch,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Made:
    """KTO (2402.01306, equation 7): `losses.unpaired.kto`, a mean over answers.

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`, `scores` (1 desirable, 0 not), `ref_logps`, `baseline` (the KL).
      beta: β, in 1/nat.
      desirable_weight: w_d.
      undesirable_weight: w_u.
    """
    ratio, weights, desirable = _columns(outputs, batch)
    values = unpaired.kto(
        ratio,
        desirable,
        batch["baseline"],
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    metrics = _metrics(outputs, batch, beta, beta * batch["baseline"])
    return Mean.of(values, weights), metrics | {"kl": drift(outputs, batch)}


def bco(
    outputs: Outputs,
    batch: Batch,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Made:
    """BCO (2404.04656): `losses.unpaired.bco`, δ a running mean of the rewards.

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`, `scores` (1 desirable, 0 not), `ref_logps`, `baseline` (δ).
      beta: β, in 1/nat.
      desirable_weight: w_d.
      undesirable_weight: w_u.
    """
    ratio, weights, desirable = _columns(outputs, batch)
    values = unpaired.bco(
        ratio,
        desirable,
        batch["baseline"],
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    metrics = _metrics(outputs, batch, beta, batch["baseline"])
    return Mean.of(values, weights), metrics | {"kl": drift(outputs, batch)}


def apo_zero_unpaired(
    outputs: Outputs,
    batch: Batch,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Made:
    """APO-zero on single answers (2408.06266): `losses.unpaired.apo_zero_unpaired`.

    Args:
      outputs: `logps`.
      batch: `mask`, `weights`, `scores` (1 desirable, 0 not), `ref_logps`.
      beta: β, in 1/nat.
      desirable_weight: w_d.
      undesirable_weight: w_u.
    """
    ratio, weights, desirable = _columns(outputs, batch)
    values = unpaired.apo_zero_unpaired(
        ratio,
        desirable,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    nothing = jnp.zeros(len(batch["weights"]))
    metrics = _metrics(outputs, batch, beta, nothing)
    return Mean.of(values, weights), metrics | {"kl": drift(outputs, batch)}


def _columns(outputs: Outputs, batch: Batch) -> tuple[Array, Array, Array]:
    """Log-ratio in nats, weight and label of each answer, [B]."""
    gap = jnp.where(batch["mask"] == 0, 0, outputs.logps - batch["ref_logps"])
    return jnp.sum(gap, -1)[:, 0], batch["weights"][:, 0], batch["scores"][:, 0]


def _metrics(outputs: Outputs, batch: Batch, beta: float, baseline: Array) -> dict[str, Mean]:
    """Rewards by label, by side of the baseline and by length; each in docs/methods/kto.md."""
    ratio, weights, desirable = _columns(outputs, batch)
    good = desirable > 0.5
    rewards, logps = beta * ratio, jnp.sum(outputs.logps * batch["mask"], -1)[:, 0]
    tokens = jnp.sum(batch["mask"], -1)[:, 0]
    right = (rewards > baseline) == good
    gap = jnp.where(good, rewards - baseline, baseline - rewards)

    def of_label(values: Array, label: Array) -> Mean:
        return Mean.of(values, weights * label)

    def share(holds: Array) -> Mean:
        return Mean.of(holds.astype(jnp.float32), weights)

    sides = of_label(rewards, good), of_label(rewards, ~good)
    return {
        "rewards/desirable": sides[0],
        "rewards/undesirable": sides[1],
        "rewards/margin": Derived.from_means(operator.sub, *sides),
        "logps/desirable": of_label(logps, good),
        "logps/undesirable": of_label(logps, ~good),
        "accuracy": share(right),
        "saturated": share(jax.nn.sigmoid(-gap) < SATURATED),
    } | correlations(tokens, rewards, good.astype(jnp.float32), weights, name="desirable")


def _needs(*, beta: float, desirable_weight: float, undesirable_weight: float) -> tuple[str, ...]:
    if not beta > 0:
        raise UserError(f"hparams.beta = {beta}: it must be positive")
    if desirable_weight < 0 or undesirable_weight < 0 or desirable_weight + undesirable_weight == 0:
        raise UserError(
            "hparams: desirable_weight and undesirable_weight cannot be negative, nor both 0"
        )
    return ("logps",)


def _advise_of_one_label(scores: np.ndarray) -> str | None:
    good = scores[:, 0] > 0.5
    if good.any() and not good.all():
        return None
    return f"all {len(good)} answers have one label: nothing to compare with"


def _advise(
    scores: np.ndarray, *, desirable_weight: float, undesirable_weight: float
) -> str | None:
    """Whether the weights make up for the balance of labels (2402.01306, section 4.2)."""
    if advice := _advise_of_one_label(scores):
        return advice
    good, bad = int((scores[:, 0] > 0.5).sum()), int((scores[:, 0] <= 0.5).sum())
    ratio = desirable_weight * good / max(undesirable_weight * bad, 1e-9)
    if 1 - 1e-6 <= ratio <= 4 / 3 + 1e-6:
        return None
    low, high = undesirable_weight * bad / good, undesirable_weight * bad / good * 4 / 3
    return (
        f"{good} desirable and {bad} undesirable answers weigh {ratio:.2f} to 1; best is 1 to "
        f"4/3 (2402.01306): hparams.desirable_weight between {low:.2f} and {high:.2f} does it"
    )


KTO = Algorithm(kto, (kto_baseline, ref_logps), needs=_needs, data="mismatched", advise=_advise)
BCO = Algorithm(
    bco, (ref_logps, bco_baseline), needs=_needs, data="unpaired", advise=_advise_of_one_label
)
APO_ZERO_UNPAIRED = Algorithm(
    apo_zero_unpaired, (ref_logps,), needs=_needs, data="unpaired", advise=_advise
)
