"""Losses of preference pairs that need no reference: the policy's own log-probabilities.

CPO and ORPO add the chosen completion's mean negative log-likelihood, a term of its own as its
denominator is tokens, not pairs: coefficient 1 in both. SimPO and AlphaPO add none.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.nn import log1mexp, log_sigmoid
from jaxtyping import Array, Float

from ptjax.losses.pair import Pair, capped_expm1, per_token, smoothed


def cpo(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Float[Array, "*B"]:
    """L = -(1 - e) ls(βz) - e ls(-βz), z = log p_chosen - log p_rejected.

    CPO (2401.08417, equation 3): DPO with a uniform reference.

    Args:
      pair: reads chosen_logps, rejected_logps.
      beta: β, in 1/nat.
      label_smoothing: e, in [0, 0.5).
    """
    return smoothed(beta * (pair.chosen_logps - pair.rejected_logps), label_smoothing)


def simpo(
    pair: Pair, *, beta: float = 2.0, gamma_beta_ratio: float = 0.5, label_smoothing: float = 0.0
) -> Float[Array, "*B"]:
    """L = -ls(β(log p_c / n_c - log p_r / n_r) - γ): log-probabilities per token, with a margin.

    SimPO (2405.14734, equation 6). γ = gamma_beta_ratio · β, as its authors tune it; TRL's
    `simpo_gamma` is γ itself.

    Args:
      pair: reads chosen_logps, rejected_logps, lengths.
      beta: β, in tokens per nat.
      gamma_beta_ratio: γ/β, in nats per token.
      label_smoothing: e, in [0, 0.5).
    """
    chosen, rejected = _means(pair)
    return smoothed(beta * (chosen - rejected - gamma_beta_ratio), label_smoothing)


def alphapo(
    pair: Pair,
    *,
    beta: float = 2.0,
    gamma_beta_ratio: float = 0.5,
    alpha: float = 0.25,
    label_smoothing: float = 0.0,
) -> Float[Array, "*B"]:
    """L = -ls(β(r_c - r_r) - γ), r = (1 - p^-α)/α, p the mean probability of a token: SimPO, bent.

    AlphaPO (2501.03884): α > 0 punishes unlikely answers more than the logarithm does, α < 0 less,
    α → 0 is SimPO. p is the geometric mean; p^-α stops at e^80.

    Args:
      pair: reads chosen_logps, rejected_logps, lengths.
      beta: β.
      gamma_beta_ratio: γ/β.
      alpha: α, not 0.
      label_smoothing: e, in [0, 0.5).
    """
    chosen, rejected = bent(pair, alpha)
    return smoothed(beta * (chosen - rejected - gamma_beta_ratio), label_smoothing)


def orpo(pair: Pair, *, beta: float = 0.1) -> Float[Array, "*B"]:
    """L = -β ls(log odds_c - log odds_r), odds = p / (1 - p), p the mean probability of a token.

    ORPO (2403.07691, equations 4 and 7, where β is λ), p the geometric mean. Log-probabilities per
    token nearer to 0 than 1e-7 count as that: their odds have no end.

    Args:
      pair: reads chosen_logps, rejected_logps, lengths.
      beta: β, the weight beside the likelihood.
    """
    chosen, rejected = log_odds(pair)
    return -beta * log_sigmoid(chosen - rejected)


def bent(pair: Pair, alpha: float) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """(1 - p^-α)/α of both sides, p the mean probability of a token (2501.03884).

    Args:
      pair: reads chosen_logps, rejected_logps, lengths.
      alpha: α, not 0.
    """
    chosen, rejected = (-capped_expm1(-alpha * x) / alpha for x in _means(pair))
    return chosen, rejected


def log_odds(pair: Pair) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """log p / (1 - p) of both sides, p the mean probability of a token (2403.07691, equation 4).

    Args:
      pair: reads chosen_logps, rejected_logps, lengths.
    """
    logps = (jnp.minimum(x, -1e-7) for x in _means(pair))
    chosen, rejected = (x - log1mexp(-x) for x in logps)
    return chosen, rejected


def _means(pair: Pair) -> tuple[Array, Array]:
    """Log-probabilities per token of both sides."""
    return (
        per_token(pair.chosen_logps, pair.chosen_length),
        per_token(pair.rejected_logps, pair.rejected_length),
    )


REFERENCE_FREE: dict[str, Callable[..., Array]] = {
    "cpo": cpo,
    "simpo": simpo,
    "alphapo": alphapo,
    "orpo": orpo,
}
"""Reference-free losses of a pair by name."""
