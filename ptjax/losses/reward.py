"""Losses of scalar heads: rewards from comparisons, ratings and right or wrong."""

import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float


def bradley_terry(
    chosen: Float[Array, "*B"],
    rejected: Float[Array, "*B"],
    margin: Float[Array, "*#B"] | float = 0.0,
    *,
    center: float = 0.0,
) -> Float[Array, "*B"]:
    """L = -ls(r_c - r_r - m) + c (r_c + r_r)²: the log-likelihood of the comparison.

    Margin m: Llama 2 (2307.09288, equation 2). Centering, as rewards are defined up to a constant
    a prompt: 2312.09244.

    Args:
      chosen: r_c.
      rejected: r_r.
      margin: m, by how much the chosen answer is better, on the scale of rewards.
      center: c, the pull of the pair's mean to 0; 0.01 is usual.
    """
    return -log_sigmoid(chosen - rejected - margin) + center * jnp.square(chosen + rejected)


def ordered_pairs(
    scores: Float[Array, "*B N"], weights: Float[Array, "*B N"]
) -> Float[Array, "*B N N"]:
    """1 at [i, j] where answer i of a prompt has the higher score of two real answers, else 0.

    Args:
      scores: greater is better; equal scores make no pair.
      weights: 0 where an answer is missing.
    """
    real = weights > 0
    both = real[..., :, None] & real[..., None, :]
    return (both & (scores[..., :, None] > scores[..., None, :])).astype(scores.dtype)


def ranked(
    rewards: Float[Array, "*B N"], pairs: Float[Array, "*B N N"], *, center: float = 0.0
) -> Float[Array, "*B"]:
    """L = mean of `bradley_terry` over a prompt's pairs, so that each prompt counts once.

    InstructGPT (2203.02155, equation 1): all K(K-1)/2 comparisons of K ranked answers in one
    forward pass. 0 where there is no pair: the caller gives such a prompt no weight.

    Args:
      rewards: of each answer.
      pairs: from `ordered_pairs`.
      center: c of `bradley_terry`.
    """
    better, worse = jnp.broadcast_arrays(rewards[..., :, None], rewards[..., None, :])
    losses = bradley_terry(better, worse, center=center)
    count = jnp.sum(pairs, (-2, -1))
    return jnp.sum(losses * pairs, (-2, -1)) / jnp.maximum(count, 1)


def squared_error(reward: Float[Array, "*B"], score: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """L = (r - y)²: regression to a rating y.

    Args:
      reward: r.
      score: y, on the scale that rewards shall have.
    """
    return jnp.square(reward - score)


def cross_entropy(logit: Float[Array, "*B"], label: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """L = -y ls(x) - (1 - y) ls(-x): right or wrong, or how often right.

    Of whole answers: outcome reward models (2110.14168). Of each step, at its last token: process
    reward models, with hard labels (2305.20050) or the share y of completions from there that
    end right (2312.08935).

    Args:
      logit: x, the score.
      label: y, in [0, 1].
    """
    return -label * log_sigmoid(logit) - (1 - label) * log_sigmoid(-logit)
