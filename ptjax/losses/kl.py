"""Estimates of KL(p ‖ p_ref) from tokens that p sampled (Schulman, "Approximating KL", 2020)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.losses.ratios import LIMIT


def k1(logps: Float[Array, "*T"], ref_logps: Float[Array, "*T"]) -> Float[Array, "*T"]:
    """log p - log p_ref: unbiased, may be negative; as a loss its mean gradient is 0.

    For rewards.

    Args:
      logps: under the policy that sampled, in nats.
      ref_logps: under the reference.
    """
    return logps - ref_logps


def k2(logps: Float[Array, "*T"], ref_logps: Float[Array, "*T"]) -> Float[Array, "*T"]:
    """½ (log p - log p_ref)²: biased, but its gradient is that of the divergence.

    Args:
      logps: under the policy that sampled, in nats.
      ref_logps: under the reference.
    """
    return jnp.square(logps - ref_logps) / 2


def k3(logps: Float[Array, "*T"], ref_logps: Float[Array, "*T"]) -> Float[Array, "*T"]:
    """exp(-u) + u - 1, u = log p - log p_ref: unbiased, never negative; GRPO (2402.03300, eq. 4).

    The exponent is cut to ±20.

    Args:
      logps: under the policy that sampled, in nats.
      ref_logps: under the reference.
    """
    gap = jnp.clip(ref_logps - logps, -LIMIT, LIMIT)
    return jnp.exp(gap) - gap - 1


KLS: dict[str, Callable[..., Array]] = {"k1": k1, "k2": k2, "k3": k3}
"""Estimators by name."""
