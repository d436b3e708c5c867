"""Losses of single completions that were judged desirable or not: one value a completion.

The implied reward is β log p / p_ref. An example's weight (`desirable_weight`,
`undesirable_weight`) multiplies its loss and not the denominator: a mean counts examples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float


def kto(
    logratio: Float[Array, "*B"],
    desirable: Float[Array, "*B"],
    kl: Float[Array, "*#B"],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, "*B"]:
    """L = w_d (1 - s(β(r - kl))) if desirable, else w_u (1 - s(β(kl - r))), r = log p / p_ref.

    KTO (2402.01306, equation 7): a value function around the policy's own distance from the
    reference, through which no gradient flows.

    Args:
      logratio: r, summed over the completion, in nats.
      desirable: 1 or 0.
      kl: `kl_baseline` of the batch, in nats.
      beta: β, in 1/nat.
      desirable_weight: w_d. With w_u, best such that w_d · n_desirable : w_u · n_undesirable lies
        between 1 : 1 and 4 : 3.
      undesirable_weight: w_u.
    """
    gain = beta * (logratio - jax.lax.stop_gradient(kl))
    sides = jax.nn.sigmoid(-gain), jax.nn.sigmoid(gain)
    return _choose(desirable, *sides, desirable_weight, undesirable_weight)


def kl_baseline(logratio: Float[Array, "*B"], weights: Float[Array, "*B"]) -> Float[Array, ""]:
    """kl = sg max(0, mean of log p(y'|x) / p_ref(y'|x)), y' another example's completion.

    KTO's estimate of the policy's distance from the reference (2402.01306), over the
    whole batch.

    Args:
      logratio: of prompts with mismatched completions, in nats.
      weights: 0 for filler.
    """
    total = jnp.sum(jnp.where(weights == 0, 0, logratio) * weights)
    mean = total / jnp.maximum(jnp.sum(weights), 1e-9)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0))


def apo_zero_unpaired(
    logratio: Float[Array, "*B"],
    desirable: Float[Array, "*B"],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, "*B"]:
    """L = w_d (1 - s(βr)) if desirable, else w_u s(βr): APO-zero a side (2408.06266, equation 7).

    Args:
      logratio: r, summed over the completion, in nats.
      desirable: 1 or 0.
      beta: β, in 1/nat.
      desirable_weight: w_d.
      undesirable_weight: w_u.
    """
    reward = beta * logratio
    sides = jax.nn.sigmoid(-reward), jax.nn.sigmoid(reward)
    return _choose(desirable, *sides, desirable_weight, undesirable_weight)


def bco(
    logratio: Float[Array, "*B"],
    desirable: Float[Array, "*B"],
    shift: Float[Array, "*#B"],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, "*B"]:
    """L = -w_d ls(βr - δ) if desirable, else -w_u ls(δ - βr): a classifier whose logit is a reward.

    BCO (2404.04656): δ, a running mean of βr, keeps the bound to DPO tight as rewards drift.

    Args:
      logratio: r, summed over the completion, in nats.
      desirable: 1 or 0.
      shift: δ, the mean of βr over all examples so far, those of this batch included.
      beta: β, in 1/nat.
      desirable_weight: w_d.
      undesirable_weight: w_u.
    """
    logit = beta * logratio - jax.lax.stop_gradient(shift)
    sides = -log_sigmoid(logit), -log_sigmoid(-logit)
    return _choose(desirable, *sides, desirable_weight, undesirable_weight)


def _choose(
    desirable: Array, good: Array, bad: Array, good_weight: float, bad_weight: float
) -> Array:
    """Each example's side of the loss, weighted."""
    return jnp.where(desirable > 0.5, good_weight * good, bad_weight * bad)


UNPAIRED_LOSSES: dict[str, Callable[..., Array]] = {
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
    "bco": bco,
}
"""Losses of a judged completion by name; kto and bco take a third array, their baseline."""
