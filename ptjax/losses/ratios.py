"""How far a policy is from the one that wrote the tokens: log-ratios, and what stale tokens weigh.

Every function gives one value a token, 0 outside the mask; what is of a whole sequence stands on
each of its tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LIMIT = 20.0
"""Log-ratios are cut to ±20 before they are exponents; veRL and TRL's VESPO do the same."""

CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
"""What `correction` takes for `how`."""


def token(
    logps: Float[Array, "*B T"], old_logps: Float[Array, "*B T"], mask: Float[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """u_t = log p_t - log p_old,t: PPO's ratio, one a token (1707.06347, section 3).

    Args:
      logps: under the policy, in nats.
      old_logps: under the policy that is to be improved.
      mask: 1 at the tokens of the completion, else 0.
    """
    return jnp.where(mask == 0, 0, logps - old_logps)


def sequence(
    logps: Float[Array, "*B T"], old_logps: Float[Array, "*B T"], mask: Float[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """u = mean_t (log p_t - log p_old,t), on each token: GSPO (2507.18071, equation 7).

    Args:
      logps: under the policy, in nats.
      old_logps: under the policy that is to be improved.
      mask: 1 at the tokens of the completion, else 0.
    """
    return _spread(_mean(logps - old_logps, mask), mask)


def sequence_token(
    logps: Float[Array, "*B T"], old_logps: Float[Array, "*B T"], mask: Float[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """u_t = sg(mean of u) + log p_t - sg(log p_t): GSPO-token (2507.18071, equation 14).

    The value of `sequence`, the gradient of the token alone: advantages may differ from token to
    token.

    Args:
      logps: under the policy, in nats.
      old_logps: under the policy that is to be improved.
      mask: 1 at the tokens of the completion, else 0.
    """
    level = jax.lax.stop_gradient(sequence(logps, old_logps, mask))
    return level + jnp.where(mask == 0, 0, logps - jax.lax.stop_gradient(logps))


def sequence_sum(
    logps: Float[Array, "*B T"], old_logps: Float[Array, "*B T"], mask: Float[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """u = Σ_t (log p_t - log p_old,t), on each token: the completion is one action.

    RLOO (2402.14740) as TRL clips it; the true likelihood ratio of a sequence.

    Args:
      logps: under the policy, in nats.
      old_logps: under the policy that is to be improved.
      mask: 1 at the tokens of the completion, else 0.
    """
    return _spread(_sum(logps - old_logps, mask), mask)


RATIOS: dict[str, Callable[..., Array]] = {
    "token": token,
    "sequence": sequence,
    "sequence_token": sequence_token,
    "sequence_sum": sequence_sum,
}
"""Levels of the log-ratio by name."""


def exponential(logratio: Float[Array, "*B T"]) -> Float[Array, "*B T"]:
    """r = exp(u), u cut to ±`LIMIT`."""
    return jnp.exp(jnp.clip(logratio, -LIMIT, LIMIT))


def correction(
    old_logps: Float[Array, "*B T"],
    sampler_logps: Float[Array, "*B T"],
    mask: Float[Array, "*B T"],
    *,
    how: str = "token_truncate",
    low: float = 0.0,
    high: float = 2.0,
) -> Float[Array, "*B T"]:
    """w = sg(p_old / p_sampler): importance weights for tokens that another policy sampled.

    `token_truncate` cuts w_t into [low, high] (TIS, Yao et al. 2025); `token_mask` makes w_t 0
    outside (IcePop, 2510.18855, low .5 and high 5). The `sequence_` forms do so with Π_t w_t on
    each token.

    Args:
      old_logps: under the policy that is to be improved, in nats.
      sampler_logps: recorded while sampling, in nats.
      mask: 1 at the tokens of the completion, else 0.
      how: one of CORRECTIONS but `none`.
      low: least weight.
      high: greatest weight.

    Returns:
      Weights, 1 where both policies agree; they multiply the loss, not its denominator.

    Raises:
      ValueError: no such form.
    """
    if how not in CORRECTIONS or how == "none":
        raise ValueError(f"how {how!r} is none of {', '.join(CORRECTIONS[1:])}")
    level, form = how.split("_")
    logratio = (token if level == "token" else sequence_sum)(old_logps, sampler_logps, mask)
    weights = jax.lax.stop_gradient(exponential(logratio))
    if form == "truncate":
        return jnp.clip(weights, low, high)
    return jnp.where((weights < low) | (weights > high), 0, weights)


def off_policy_mask(
    logps: Float[Array, "*B T"],
    sampler_logps: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Float[Array, "*B T"],
    *,
    threshold: float,
) -> Float[Array, "*B T"]:
    """0 where A < 0 and mean_t (log p_sampler,t - log p_t) > threshold, else 1.

    DeepSeek-V3.2 (2512.02556, equation 9): bad answers that the policy would no longer write teach
    nothing.

    Args:
      logps: under the policy, in nats.
      sampler_logps: recorded while sampling.
      advantages: of each token.
      mask: 1 at the tokens of the completion, else 0.
      threshold: in nats a token.
    """
    gap = jax.lax.stop_gradient(-sequence(logps, sampler_logps, mask))
    return jnp.where((advantages < 0) & (gap > threshold), 0.0, 1.0).astype(logps.dtype)


def _sum(values: Array, mask: Array) -> Array:
    """Σ_t over the mask; what stands outside it is not read."""
    return jnp.sum(jnp.where(mask == 0, 0, values), -1)


def _mean(values: Array, mask: Array) -> Array:
    return _sum(values, mask) / jnp.maximum(jnp.sum(mask, -1), 1)


def _spread(values: Array, mask: Array) -> Array:
    """A sequence's value on each token of its mask."""
    return jnp.where(mask == 0, 0, values[..., None])
