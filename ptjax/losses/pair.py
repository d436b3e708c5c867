"""A preference pair as its losses see it, and what may be done to it before one is applied.

B pairs, T tokens of a completion with its prompt. Axis 2 is the pair: chosen first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

F_DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")
_EXPONENT = 80.0  # exp(80) is finite in float32, and so are some thousand times as much


class Pair(NamedTuple):
    """Sums over the completions' tokens, all of one shape [*B], in nats."""

    a: Float[Array, "*B"]
    """Chosen: log p / p_ref; where there is no reference, log p."""
    b: Float[Array, "*B"]
    """Rejected: the same."""
    chosen_logps: Float[Array, "*B"]
    """log p of the chosen completion under the policy."""
    rejected_logps: Float[Array, "*B"]
    """log p of the rejected completion under the policy."""
    chosen_length: Float[Array, "*B"]
    """Tokens of the chosen completion; 0 in a filler pair."""
    rejected_length: Float[Array, "*B"]
    """Tokens of the rejected completion."""
    weights: Float[Array, "*B"]
    """The pair's weight: 0 for filler."""

    @classmethod
    def of(
        cls,
        logps: Float[Array, "*B 2 T"],
        ref_logps: Float[Array, "*B 2 T"] | None,
        mask: Float[Array, "*B 2 T"],
        weights: Float[Array, "*B 2"],
        *,
        ld_alpha: float = 1.0,
    ) -> "Pair":
        """Sums per-token log-probabilities into pairs.

        Args:
          logps: log-probabilities under the policy, in nats.
          ref_logps: under the reference; None for a loss that has none.
          mask: 1 at the tokens of the completion, else 0; a length is a sum of it.
          weights: of each sequence; a pair weighs what its chosen side weighs.
          ld_alpha: weight of the longer side's tail, see `ld_weights`.
        """
        tokens = mask if ld_alpha == 1 else ld_weights(mask, alpha=ld_alpha)
        policy = _sum(logps, tokens)
        ratio = policy if ref_logps is None else policy - _sum(ref_logps, tokens)
        length = jnp.sum(mask, -1)
        return cls(
            a=ratio[..., 0],
            b=ratio[..., 1],
            chosen_logps=policy[..., 0],
            rejected_logps=policy[..., 1],
            chosen_length=length[..., 0],
            rejected_length=length[..., 1],
            weights=weights[..., 0],
        )


def _sum(values: Array, weights: Array) -> Array:
    """Σ_t w_t v_t; what has no weight is not read."""
    return jnp.sum(jnp.where(weights == 0, 0, values) * weights, -1)


def ld_weights(mask: Float[Array, "*B 2 T"], *, alpha: float) -> Float[Array, "*B 2 T"]:
    """w_t = 1 up to the shorter side's length, α beyond: length-desensitised DPO.

    LD-DPO (2409.06411): a longer answer's tail counts for less, so that its length alone is no
    reason to prefer it.

    Args:
      mask: 1 at the tokens of the completion, else 0.
      alpha: weight of the tail, in [0, 1]; 1 changes nothing.
    """
    place = jnp.cumsum(mask, -1)
    shared = jnp.min(jnp.sum(mask, -1), -1)[..., None, None]
    return jnp.where(place <= shared, mask, alpha * mask)


def wpo_weight(
    logps: Float[Array, "*B T"], sum_squares: Float[Array, "*B T"], mask: Float[Array, "*B T"]
) -> Float[Array, "*B"]:
    """w = sg exp(mean_t (log p_t - log Σ_v p_v²)): how likely the policy is to write the sequence.

    WPO (2406.11827, equation 2, with its sampled alignment): a pair's loss is multiplied by the
    product of both sides' weights. No gradient flows.

    Args:
      logps: log-probabilities of the tokens.
      sum_squares: log Σ_v p_v² of the distributions they were drawn from.
      mask: 1 at the tokens of the completion, else 0.
    """
    length = jnp.maximum(jnp.sum(mask, -1), 1)
    return jax.lax.stop_gradient(jnp.exp(_sum(logps - sum_squares, mask) / length))


def f_score(
    logratio: Float[Array, "*B"], *, f_divergence: str, f_alpha: float = 0.5
) -> Float[Array, "*B"]:
    """f'(r), r = p / p_ref: the reward that a penalty D_f(p ‖ p_ref) implies in place of log r.

    f-DPO (2309.16240, table 1), up to constants that cancel in a difference:
    reverse_kl: log r · forward_kl: 1 - 1/r · js: log(2r / (1 + r)) · alpha: (r^(α-1) - 1) / (α-1).

    Exponents stop at 80, where float32 would overflow.

    Args:
      logratio: log r, a or b of a pair.
      f_divergence: one of F_DIVERGENCES.
      f_alpha: α of `alpha`; at 1 that is reverse_kl.

    Raises:
      ValueError: no such divergence.
    """
    if f_divergence not in F_DIVERGENCES:
        raise ValueError(f"f_divergence {f_divergence!r} is none of {', '.join(F_DIVERGENCES)}")
    if f_divergence == "forward_kl":
        return -capped_expm1(-logratio)
    if f_divergence == "js":
        return jnp.log(2.0) + log_sigmoid(logratio)
    if f_divergence == "alpha" and f_alpha != 1:
        return capped_expm1((f_alpha - 1) * logratio) / (f_alpha - 1)
    return logratio


def with_f_divergence(given: Pair, *, f_divergence: str, f_alpha: float = 0.5) -> Pair:
    """The pair with `f_score` applied to both of its log-ratios.

    Only the losses of `F_DIVERGENCE_LOSSES` take such a pair: in the others the constant that f'
    leaves open does not cancel.
    """
    a, b = (f_score(x, f_divergence=f_divergence, f_alpha=f_alpha) for x in (given.a, given.b))
    return given._replace(a=a, b=b)


def smoothed(z: Float[Array, "*B"], label_smoothing: float) -> Float[Array, "*B"]:
    """-(1 - e) ls(z) - e ls(-z): cross-entropy with a label that is wrong with probability e."""
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


def capped_expm1(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """exp(min(x, 80)) - 1."""
    return jnp.expm1(jnp.minimum(x, _EXPONENT))


def per_token(total: Float[Array, "*B"], length: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """total / length, and 0 where there are no tokens."""
    return total / jnp.maximum(length, 1)
