"""Losses of preference pairs that judge each side by itself, against the reference's own level."""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from ptjax.losses.pair import Pair


def nca_pair(pair: Pair, *, beta: float = 0.1) -> Float[Array, "*B"]:
    """L = -ls(βa) - ½ ls(-βa) - ½ ls(-βb): noise contrastive alignment of two answers.

    NCA (2402.05369, K = 2): keeps the chosen answer's likelihood from falling.

    Args:
      pair: reads a, b.
      beta: β, in 1/nat.
    """
    a, b = beta * pair.a, beta * pair.b
    return -log_sigmoid(a) - 0.5 * log_sigmoid(-a) - 0.5 * log_sigmoid(-b)


def bco_pair(pair: Pair, *, beta: float = 0.1) -> Float[Array, "*B"]:
    """L = -ls(βa) - ls(-βb): a classifier of good and bad whose logit is the implied reward.

    BCO (2404.04656) without its reward shift, which `unpaired.bco` has.

    Args:
      pair: reads a, b.
      beta: β, in 1/nat.
    """
    return -log_sigmoid(beta * pair.a) - log_sigmoid(-beta * pair.b)


def sppo_hard(pair: Pair, *, beta: float = 0.1) -> Float[Array, "*B"]:
    """L = (a - 1/(2β))² + (b + 1/(2β))²: self-play with the winner's probability set to 1.

    SPPO (2405.00675, equation 4.7; β is 1/η).

    Args:
      pair: reads a, b.
      beta: β, in 1/nat.
    """
    return jnp.square(pair.a - 0.5 / beta) + jnp.square(pair.b + 0.5 / beta)


def apo_zero(pair: Pair, *, beta: float = 0.1) -> Float[Array, "*B"]:
    """L = 1 - s(βa) + s(βb): chosen up, rejected down (APO-zero; 2408.06266, equation 7).

    For chosen answers that are better than the model's own.

    Args:
      pair: reads a, b.
      beta: β, in 1/nat.
    """
    return jax.nn.sigmoid(-beta * pair.a) + jax.nn.sigmoid(beta * pair.b)


def apo_down(pair: Pair, *, beta: float = 0.1) -> Float[Array, "*B"]:
    """L = s(βa) + 1 - s(β(a - b)): both down, rejected more (APO-down; 2408.06266, equation 8).

    For a model that is better than the chosen answers.

    Args:
      pair: reads a, b.
      beta: β, in 1/nat.
    """
    return jax.nn.sigmoid(beta * pair.a) + jax.nn.sigmoid(-beta * (pair.a - pair.b))
