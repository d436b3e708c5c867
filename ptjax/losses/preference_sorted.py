"""Losses that compare distributions over the batch, by sorting, in place of pairs (AOT).

One dimensional optimal transport is a sort: the policy's k-th smallest value answers to the
reference's k-th smallest. So a pair's loss depends on all others of the batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.losses.pair import Pair, smoothed


def aot(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Float[Array, "B"]:
    """L_k = smoothed(β(sort(lc - lr) - sort(ref_c - ref_r))_k), lc and lr the policy's log-probs.

    AOT, paired (2406.05882): the policy's margins dominate the reference's. The loss of
    rank k stands where the pair of that rank stands; pairs of weight 0 sort behind all others on
    both sides, and weights are otherwise taken as equal.

    Args:
      pair: reads a, b, chosen_logps, rejected_logps, weights.
      beta: β, in 1/nat.
      label_smoothing: e, as in `smoothed`.
    """
    policy = pair.chosen_logps - pair.rejected_logps
    reference = policy - (pair.a - pair.b)
    gap, order = _gap(policy, jax.lax.stop_gradient(reference), pair.weights)
    return smoothed(beta * gap, label_smoothing)[jnp.argsort(order)]


def aot_unpaired(
    pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Float[Array, "B"]:
    """L_k = smoothed(β(sort(a) - sort(b))_k): chosen log-ratios dominate rejected ones.

    AOT, unpaired (2406.05882). Ranks, weights and filler as in `aot`; the loss stands
    where the chosen side of that rank stands.

    Args:
      pair: reads a, b, weights.
      beta: β, in 1/nat.
      label_smoothing: e, as in `smoothed`.
    """
    gap, order = _gap(pair.a, pair.b, pair.weights)
    return smoothed(beta * gap, label_smoothing)[jnp.argsort(order)]


def _gap(upper: Array, lower: Array, weights: Array) -> tuple[Array, Array]:
    """sort(upper) - sort(lower), and the order of `upper`; filler counts 0 and comes last."""
    filler = weights == 0
    values = [jnp.where(filler, 0, x) for x in (upper, lower)]
    orders = [jnp.argsort(jnp.where(filler, jnp.inf, x)) for x in values]
    high, low = (x[order] for x, order in zip(values, orders, strict=True))
    return high - low, orders[0]
