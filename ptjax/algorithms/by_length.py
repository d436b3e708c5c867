"""How rewards go with the length of answers: what judgements teach first, wanted or not."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.types import Derived, Mean


def by_length(
    chosen: Float[Array, "*S"],
    rejected: Float[Array, "*S"],
    chosen_length: Float[Array, "*S"],
    rejected_length: Float[Array, "*S"],
    weights: Float[Array, "*S"],
) -> dict[str, Mean]:
    """Rewards of the longer and of the shorter answer, of pairs of unequal length.

    Args:
      chosen: rewards.
      rejected: rewards.
      chosen_length: tokens.
      rejected_length: tokens.
      weights: of pairs.
    """
    longer = jnp.sign(chosen_length - rejected_length)
    unequal = weights * (longer != 0)

    def share(holds: Array) -> Mean:
        return Mean.of(holds.astype(jnp.float32), unequal)

    return {
        "longer/preferred": share(jnp.sign(chosen - rejected) == longer),
        "longer/chosen": share(longer > 0),
        "longer/reward": Mean.of(jnp.where(longer > 0, chosen, rejected), unequal),
        "shorter/reward": Mean.of(jnp.where(longer > 0, rejected, chosen), unequal),
    }


def correlations(
    tokens: Float[Array, " B"],
    rewards: Float[Array, " B"],
    judged: Float[Array, " B"],
    weights: Float[Array, " B"],
    *,
    name: str,
) -> dict[str, Mean]:
    """Of single answers: Pearson's correlation of length with reward, and with the judgement.

    Args:
      tokens: of each answer.
      rewards: of each answer.
      judged: the data's label or score.
      weights: of each answer.
      name: of the judgement, in the metric.
    """
    return {
        "length/reward": _correlation(tokens, rewards, weights),
        f"length/{name}": _correlation(tokens, judged, weights),
    }


def _correlation(x: Array, y: Array, weights: Array) -> Derived:
    means = [Mean.of(values, weights) for values in (x, y, x * y, x * x, y * y)]
    return Derived.from_means(_pearson, *means)


def _pearson(x: Array, y: Array, xy: Array, xx: Array, yy: Array) -> Array:
    """The correlation of x and y from five means; 0 where one of them hardly varies."""
    spread = jnp.stack([xx - x * x, yy - y * y])
    varies = jnp.all(spread > 1e-5 * jnp.stack([xx, yy]))  # float32 rounds to 1e-7
    return jnp.where(varies, (xy - x * y) / jnp.sqrt(jnp.where(varies, jnp.prod(spread), 1)), 0)
