"""Supervised fine-tuning: the likelihood of the trained tokens, and its variants."""

from collections.abc import Callable

from jaxtyping import Array

from ptjax.algorithms.base import Algorithm, Terms
from ptjax.errors import UserError
from ptjax.losses.nll import dft, nll, smoothed_nll, z_loss
from ptjax.types import Batch, Mean, Outputs

LOSSES = ("nll", "dft")


def token_weights(batch: Batch) -> Array:
    """[B, N, T]: the mask times the sequence's weight."""
    return batch["mask"] * batch["weights"][..., None]


def sft(
    outputs: Outputs,
    batch: Batch,
    *,
    loss: str = "nll",
    label_smoothing: float = 0.0,
    z_loss_weight: float = 0.0,
) -> tuple[Terms, dict[str, Mean]]:
    """L = Σ w_t L_t / Σ w_t over the trained tokens of the whole global batch.

    Args:
      outputs: `logps`; `mean_logps` with label smoothing, `logsumexp` with z-loss.
      batch: `mask`, `weights`.
      loss: `nll`, or `dft` (2508.05629).
      label_smoothing: mass that the target spreads over the vocabulary; nll only.
      z_loss_weight: coefficient of the squared log-normaliser (2204.02311 uses 1e-4).

    Returns:
      The terms, and the metric `nll`: the plain mean, whatever is trained.
    """
    weights = token_weights(batch)
    if label_smoothing:
        values = smoothed_nll(outputs.logps, outputs.mean_logps, label_smoothing=label_smoothing)
    else:
        values = (dft if loss == "dft" else nll)(outputs.logps)
    terms: Terms = {"loss": (1.0, Mean.of(values, weights))}
    if z_loss_weight:
        terms["z_loss"] = (z_loss_weight, Mean.of(z_loss(outputs.logsumexp), weights))
    return terms, {"nll": Mean.of(nll(outputs.logps), weights)}


def held_out(outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
    """Plain likelihood and accuracy of the trained tokens, whatever is minimised.

    Args:
      outputs: `logps`, `correct`.
      batch: `mask`, `weights`.
    """
    weights = token_weights(batch)
    accuracy = Mean.of(outputs.correct, weights)
    return Mean.of(nll(outputs.logps), weights), {"accuracy": accuracy}


def _needs(*, loss: str, label_smoothing: float, z_loss_weight: float) -> tuple[str, ...]:
    if loss not in LOSSES:
        raise UserError(f"sft: loss {loss!r} is none of {', '.join(LOSSES)}")
    if label_smoothing and loss == "dft":
        raise UserError("sft: label_smoothing goes with loss='nll', not with 'dft'")
    if not 0 <= label_smoothing < 1:
        raise UserError(f"sft: label_smoothing {label_smoothing} is not in [0, 1)")
    if not z_loss_weight >= 0:
        raise UserError(f"sft: z_loss_weight {z_loss_weight} is negative")
    fields = ["logps"]
    if label_smoothing:
        fields.append("mean_logps")
    if z_loss_weight:
        fields.append("logsumexp")
    return tuple(fields)


def _linear(
    *, loss: str, label_smoothing: float, z_loss_weight: float
) -> Callable[[Batch], Array] | None:
    plain = loss == "nll" and not label_smoothing and not z_loss_weight
    return token_weights if plain else None


LIKELIHOOD = Algorithm(held_out, needs=("logps", "correct"))

SFT = Algorithm(sft, needs=_needs, linear=_linear, judge=LIKELIHOOD)
