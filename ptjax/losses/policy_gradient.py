"""Surrogate losses of the policy gradient: one value a token of a sampled completion.

Their gradient where the policy is the one that sampled is -A ∇ log p, or a multiple of it; they
differ in what they do when it no longer is. How tokens are averaged is another matter: a mean over
tokens, over sequences, over a constant.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.losses.ratios import LIMIT, RATIOS, exponential

_LEAST = -18.420681  # log(1e-8), where VESPO's authors cut


class Sampled(NamedTuple):
    """Tokens that a policy sampled, as its losses see them; all 0 outside `mask`."""

    logps: Float[Array, "*B T"]
    """log p under the policy, in nats: what the gradient goes through."""
    logratio: Float[Array, "*B T"]
    """u: one of `ptjax.losses.ratios`, of the level that the loss is to be of."""
    advantages: Float[Array, "*B T"]
    """A: how much better than expected the token was; a sequence's stands on each of its tokens."""
    mask: Float[Array, "*B T"]
    """1 at the tokens of the completion, else 0."""

    @classmethod
    def of(
        cls,
        logps: Float[Array, "*B T"],
        old_logps: Float[Array, "*B T"],
        advantages: Float[Array, "*B T"],
        mask: Float[Array, "*B T"],
        *,
        ratio: str = "token",
    ) -> "Sampled":
        """Tokens with the log-ratio of a level.

        Args:
          logps: under the policy, in nats.
          old_logps: under the policy that is to be improved.
          advantages: A; what stands outside the mask is not read.
          mask: 1 at the tokens of the completion, else 0.
          ratio: a row of `ptjax.losses.ratios.RATIOS`.
        """
        inside = [jnp.where(mask == 0, 0, x) for x in (logps, advantages)]
        return cls(inside[0], RATIOS[ratio](logps, old_logps, mask), inside[1], mask)


def clipped(
    given: Sampled,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
) -> Float[Array, "*B T"]:
    """L_t = -min(r A, clip(r, 1 - ε_low, 1 + ε_high) A), r = exp(u): PPO (1707.06347, equation 7).

    With a greater ε_high it is DAPO's clip-higher (2503.14476); with `sequence`
    log-ratios GSPO (2507.18071, equation 5).

    Args:
      given: reads logratio, advantages.
      clip_low: ε_low.
      clip_high: ε_high.
      dual_clip: c > 1: where A < 0 the loss is at most -c A (1912.09729).
      ratio_cap: δ > 1 + ε_high: the unclipped r is at most δ (2505.07291, two-sided clipping).
    """
    r, a = exponential(given.logratio), given.advantages
    inside = jnp.clip(r, 1 - clip_low, 1 + clip_high)
    free = r if ratio_cap is None else jnp.minimum(r, ratio_cap)
    gain = jnp.minimum(free * a, inside * a)
    if dual_clip is not None:
        gain = jnp.where(a < 0, jnp.maximum(gain, dual_clip * a), gain)
    return -gain


def reinforce(given: Sampled) -> Float[Array, "*B T"]:
    """L_t = -A log p_t: no ratio, no clip (Williams 1992; GPG, 2504.02546).

    Args:
      given: reads logps, advantages.
    """
    return -given.advantages * given.logps


def cispo(given: Sampled, *, clip_low: float = 1.0, clip_high: float = 4.0) -> Float[Array, "*B T"]:
    """L_t = -sg(clip(r, 1 - ε_low, 1 + ε_high)) A log p_t: every token keeps a gradient.

    CISPO (2506.13585, equations 4 and 5). ε_low = 1 leaves ratios free below, as the paper and TRL
    do; a smaller one is veRL's form with both sides.

    Args:
      given: reads logps, logratio, advantages.
      clip_low: ε_low.
      clip_high: ε_high; 4 caps ratios at 5.
    """
    r = jnp.clip(exponential(given.logratio), 1 - clip_low, 1 + clip_high)
    return -jax.lax.stop_gradient(r) * given.advantages * given.logps


def gmpo(given: Sampled, *, clip_low: float = 0.4, clip_high: float = 0.4) -> Float[Array, "*B T"]:
    """L = -exp(mean_t v_t) mean_t A_t on each token: GMPO (2507.20673).

    v_t = min(u_t, ε_high) if A_t > 0, else max(u_t, -ε_low): a geometric mean of ratios, each
    token's clipped in the log.

    Args:
      given: reads logratio of level `token`, advantages, mask.
      clip_low: ε_low, in nats.
      clip_high: ε_high, in nats.
    """
    u = jnp.clip(given.logratio, -LIMIT, LIMIT)
    v = jnp.where(given.advantages > 0, jnp.minimum(u, clip_high), jnp.maximum(u, -clip_low))
    length = jnp.maximum(jnp.sum(given.mask, -1), 1)
    ratio = jnp.exp(jnp.sum(v * given.mask, -1) / length)
    advantage = jnp.sum(given.advantages * given.mask, -1) / length
    return jnp.where(given.mask == 0, 0, -(ratio * advantage)[..., None])


def sapo(given: Sampled, *, taus: tuple[float, ...] = (1.0, 1.05)) -> Float[Array, "*B T"]:
    """L_t = -(4/τ) s(τ(r - 1)) A, τ = τ_+ if A > 0, else τ_-: a gate in the place of a clip.

    SAPO (2511.20347): its slope at r = 1 is that of r, and it fades on both
    sides.

    Args:
      given: reads logratio, advantages.
      taus: (τ_+, τ_-).
    """
    r, a = exponential(given.logratio), given.advantages
    tau = jnp.where(a > 0, taus[0], taus[1])
    return -4 / tau * jax.nn.sigmoid(tau * (r - 1)) * a


def vespo(
    given: Sampled,
    *,
    phi_positive: tuple[float, ...] = (2.0, 3.0),
    phi_negative: tuple[float, ...] = (3.0, 2.0),
) -> Float[Array, "*B T"]:
    """L_t = -sg(φ(W)) A log p_t, φ(W) = exp(λ) W^k exp(-λ W), W = exp(Σ_t u_t).

    VESPO (2602.10693), as TRL 1.16 computes it: φ(1) = 1, and sequences that became much more or
    much less likely count for little. (k, λ) is `phi_positive` where A >= 0, else `phi_negative`.

    Args:
      given: reads logps, logratio of level `token`, advantages, mask.
      phi_positive: (k, λ) for A >= 0.
      phi_negative: (k, λ) for A < 0.
    """
    u = jnp.clip(given.logratio, -LIMIT, LIMIT)
    total = jnp.clip(jnp.sum(u * given.mask, -1, keepdims=True), _LEAST, LIMIT)
    better = given.advantages >= 0
    k, rate = (jnp.where(better, *pair) for pair in zip(phi_positive, phi_negative, strict=True))
    phi = jnp.exp(rate + k * total - rate * jnp.exp(total))
    return -jax.lax.stop_gradient(phi) * given.advantages * given.logps


SURROGATES: dict[str, Callable[..., Array]] = {
    "clipped": clipped,
    "reinforce": reinforce,
    "cispo": cispo,
    "gmpo": gmpo,
    "sapo": sapo,
    "vespo": vespo,
}
"""Surrogates by name."""
