"""Advantages of a rollout's tokens: baseline, scale, returns, whitening, in one jitted program.

An answer counts in statistics where its weight is not 0: it has a reward and is no filler.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ptjax.losses import advantages as groups
from ptjax.losses.kl import KLS
from ptjax.losses.returns import discounted, token_rewards, whiten
from ptjax.types import Batch

BASELINES = ("group", "leave_one_out", "length_weighted", "greedy", "batch", "none")
IN_GROUPS = ("group", "leave_one_out", "length_weighted")
"""Baselines under which a group of equal rewards teaches nothing."""
SCALES = ("group", "batch", "none", "signal")
KL_IN = ("loss", "reward", "token_reward")


@functools.partial(
    jax.jit,
    static_argnames=(
        "baseline",
        "scale",
        "eps",
        "part_weights",
        "whitened",
        "gamma",
        "beta",
        "kl",
        "kl_in",
        "top_entropy",
    ),
)
def token_advantages(
    batch: Batch,
    *,
    baseline: str,
    scale: str,
    eps: float,
    part_weights: tuple[float, ...] | None,
    whitened: bool,
    gamma: float,
    beta: float,
    kl: str,
    kl_in: str,
    top_entropy: float,
) -> tuple[Array, dict[str, Array]]:
    """`advantages` [B, N, T], and figures of the batch.

    Args:
      batch: the columns that the settings read.
      baseline: one of BASELINES.
      scale: one of SCALES.
      eps: added to a standard deviation.
      part_weights: of each reward, where each is normalised before their sum; None: the sum is.
      whitened: over the batch's tokens.
      gamma: discount of returns.
      beta: of KL in the reward, where no controller has written `kl_coef`.
      kl: estimator.
      kl_in: one of KL_IN.
      top_entropy: share of tokens, those of the greatest entropy, that keep their advantage.
    """
    mask, valid = batch["mask"], batch["weights"] > 0
    tokens = mask * valid[..., None]
    rewards, drift = batch["rewards"], None
    if kl_in != "loss" and "ref_logps" in batch:
        old = batch["old_logps"] if "old_logps" in batch else batch["sampler_logps"]
        drift = jnp.where(tokens == 0, 0, KLS[kl](old, batch["ref_logps"]))
    coefficient = (
        jnp.max(batch["kl_coef"]) if "kl_coef" in batch else jnp.asarray(beta, rewards.dtype)
    )
    if drift is not None and kl_in == "reward":
        rewards = rewards - coefficient * jnp.sum(drift, -1)
    if part_weights is not None:
        parts = jnp.asarray(part_weights, rewards.dtype)
        gap = groups.normalized_parts(batch["reward_parts"], valid, parts, eps=eps)
        scored = gap
    else:
        gap, scored = _over_baseline(batch, rewards, valid, baseline), rewards
    learns = groups.signal(scored, valid)
    gap = groups.over(gap, _scale(scored, valid, learns, scale, eps))
    ends = token_rewards(gap, tokens, drift if kl_in == "token_reward" else None, coefficient)
    found = discounted(ends, tokens, gamma=gamma)
    if whitened:
        found = whiten(found, tokens)
        if baseline in IN_GROUPS:
            found = jnp.where(learns[:, None, None], found, 0)
    if top_entropy < 1:
        found = found * high_entropy(batch["old_entropy"], tokens, top_entropy)
    real = jnp.maximum(jnp.sum(jnp.any(valid, -1)), 1)
    dull = jnp.sum(jnp.any(valid, -1) & ~groups.signal(batch["rewards"], valid))
    figures = {"no_signal": dull / real, "std": groups.deviation(found, tokens > 0, None).squeeze()}
    if drift is not None:
        figures["kl"] = jnp.sum(drift) / jnp.maximum(jnp.sum(tokens), 1)
    return found, figures


def _over_baseline(batch: Batch, rewards: Array, valid: Array, baseline: str) -> Array:
    """R less the baseline of a name."""
    if baseline == "group":
        return groups.group_mean(rewards, valid)
    if baseline == "leave_one_out":
        return groups.leave_one_out(rewards, valid)
    if baseline == "length_weighted":
        return groups.length_weighted(rewards, valid, jnp.sum(batch["mask"], -1))
    if baseline == "greedy":
        return groups.against_greedy(rewards, valid, batch["greedy_rewards"])
    if baseline == "batch":
        return groups.centered(rewards, valid, None)
    return jnp.where(valid, rewards, 0)


def _scale(rewards: Array, valid: Array, learns: Array, scale: str, eps: float) -> Array:
    """What advantages are divided by."""
    if scale == "signal":
        real = jnp.any(valid, -1)
        share = jnp.maximum(jnp.sum(learns & real), 1) / jnp.maximum(jnp.sum(real), 1)
        return share[None, None]
    if scale == "none":
        return jnp.ones((1, 1))
    axis = -1 if scale == "group" else None
    return groups.deviation(rewards, valid, axis) + eps


def high_entropy(entropy: Array, tokens: Array, share: float) -> Array:
    """1 at the share of the batch's trained tokens with the greatest entropy, else 0.

    The forking tokens of 2506.01939; on the others the policy gradient is 0.
    """
    least = jnp.nanquantile(jnp.where(tokens > 0, entropy, jnp.nan), 1 - share)
    return jnp.where((tokens > 0) & (entropy >= least), 1.0, 0.0)
