"""Supervised losses: one value a token, to be averaged over the trained tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def nll(logps: Float[Array, "*T"]) -> Float[Array, "*T"]:
    """L_t = -log p_t: cross-entropy with the token that stands there.

    Args:
      logps: log-probabilities of the tokens, in nats.
    """
    return -logps


def smoothed_nll(
    logps: Float[Array, "*T"], mean_logps: Float[Array, "*T"], *, label_smoothing: float
) -> Float[Array, "*T"]:
    """L_t = -(1 - e) log p_t - e · mean_v log p_v: cross-entropy with a softened target.

    Szegedy et al. 2016 (1512.00567), section 7; the uniform part covers the true token as well.

    Args:
      logps: log-probabilities of the tokens.
      mean_logps: log-probabilities averaged over the vocabulary.
      label_smoothing: e, in [0, 1).
    """
    return -(1 - label_smoothing) * logps - label_smoothing * mean_logps


def dft(logps: Float[Array, "*T"]) -> Float[Array, "*T"]:
    """L_t = -sg(p_t) log p_t: dynamic fine-tuning (2508.05629, equation 9).

    Weighting by the probability undoes the 1/p of the likelihood's gradient, so that unlikely
    tokens pull less.

    Args:
      logps: log-probabilities of the tokens.
    """
    return -jax.lax.stop_gradient(jnp.exp(logps)) * logps


def z_loss(logsumexp: Float[Array, "*T"]) -> Float[Array, "*T"]:
    """L_t = (log Σ_v exp logit_v)²: keeps the normaliser near one (2204.02311, section 5).

    Args:
      logsumexp: log of the normaliser at each token.
    """
    return jnp.square(logsumexp)
