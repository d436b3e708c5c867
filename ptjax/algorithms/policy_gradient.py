"""The policy gradient: one loss over sampled completions, of which every preset is a row."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.algorithms.base import Terms, known_call
from ptjax.losses.kl import KLS, k3
from ptjax.losses.policy_gradient import SURROGATES, Sampled
from ptjax.losses.ratios import correction as correction_weights
from ptjax.losses.ratios import exponential, off_policy_mask
from ptjax.types import Batch, Mean, Outputs

DENOMINATORS = ("sequence", "tokens", "constant", "sequence_sum")


def policy_gradient(
    outputs: Outputs,
    batch: Batch,
    *,
    surrogate: str = "clipped",
    ratio: str = "token",
    denominator: str = "sequence",
    max_tokens: int = 0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
    taus: tuple[float, ...] = (1.0, 1.05),
    phi_positive: tuple[float, ...] = (2.0, 3.0),
    phi_negative: tuple[float, ...] = (3.0, 2.0),
    beta: float = 0.0,
    kl: str = "k3",
    kl_in: str = "loss",
    kl_ratio: bool = False,
    entropy_coef: float = 0.0,
    correction: str = "none",
    correction_low: float = 0.0,
    correction_high: float = 2.0,
    off_policy: float | None = None,
) -> tuple[Terms, dict[str, Mean]]:
    """L = <w l> + β <KL> - α H, l a surrogate of `ptjax.losses.policy_gradient`.

    <·> is a mean with the denominator that is set: `sequence`, a mean over answers of their mean
    over tokens (GRPO, 2402.03300, equation 3); `tokens`, over all tokens of the global batch (DAPO,
    2503.14476); `constant`, the sum over n answers / (n · L_max) (Dr. GRPO, 2503.20783);
    `sequence_sum`, over answers of their sum (LUSPO, REINFORCE).

    Args:
      outputs: `logps`, `entropy`.
      batch: `mask`, `weights`, `advantages`; `old_logps` where several updates follow a rollout,
        else the policy is its own old one; `ref_logps` where β > 0; `sampler_logps` where
        something corrects for the sampler; `kl_coef`, `entropy_coef` of controllers.
      surrogate: l.
      ratio: level of the log-ratio, a row of `ptjax.losses.ratios.RATIOS`.
      denominator: above.
      max_tokens: L_max; 0: the batch's length T.
      clip_low: ε_low.
      clip_high: ε_high.
      dual_clip: c.
      ratio_cap: δ.
      taus: of `sapo`.
      phi_positive: (k, λ) of `vespo`.
      phi_negative: the same where A < 0.
      beta: β, coefficient of KL to the reference; 0: no reference.
      kl: estimator, `k1`, `k2` or `k3`.
      kl_in: `loss`; `reward` and `token_reward` are the advantage's.
      kl_ratio: KL times the ratio, so that its gradient holds off policy (2512.02556).
      entropy_coef: α of an entropy bonus, a mean over tokens.
      correction: w, importance weights for another sampler.
      correction_low: of those weights.
      correction_high: of those weights.
      off_policy: threshold of `off_policy_mask`, in nats a token.

    Returns:
      The terms, and the metrics of docs/methods/grpo.md.
    """
    logps, mask, advantages = outputs.logps, batch["mask"], batch["advantages"]
    old = batch["old_logps"] if "old_logps" in batch else jax.lax.stop_gradient(logps)
    given = Sampled.of(logps, old, advantages, mask, ratio=ratio)
    settings = {
        "clip_low": clip_low,
        "clip_high": clip_high,
        "dual_clip": dual_clip,
        "ratio_cap": ratio_cap,
        "taus": taus,
        "phi_positive": phi_positive,
        "phi_negative": phi_negative,
    }
    values = known_call(SURROGATES[surrogate], settings, given)
    metrics = _metrics(outputs, batch, given, old, surrogate, settings)
    tokens = mask * batch["weights"][..., None]
    if correction != "none":
        weights = correction_weights(
            old,
            batch["sampler_logps"],
            mask,
            how=correction,
            low=correction_low,
            high=correction_high,
        )
        metrics["correction"] = Mean.of(weights, tokens)
        values = values * weights
    if off_policy is not None:
        keep = off_policy_mask(
            logps, batch["sampler_logps"], advantages, mask, threshold=off_policy
        )
        metrics["off_policy"] = Mean.of(1 - keep, tokens)
        values = values * keep

    def mean(values: Array) -> Mean:
        return averaged(values, mask, batch["weights"], denominator, max_tokens)

    terms: Terms = {"policy": (1.0, mean(values))}
    if kl_in == "loss" and "ref_logps" in batch:
        penalty = KLS[kl](logps, batch["ref_logps"])
        factor = exponential(given.logratio) if kl_ratio else 1.0
        terms["kl"] = (_coefficient(batch, "kl_coef", beta), mean(factor * penalty))
    if entropy_coef or "entropy_coef" in batch:
        bonus = -1 * _coefficient(batch, "entropy_coef", entropy_coef)
        terms["entropy"] = (bonus, Mean.of(outputs.entropy, tokens))
    return terms, metrics


def averaged(
    values: Float[Array, "B N T"],
    mask: Float[Array, "B N T"],
    weights: Float[Array, "B N"],
    denominator: str,
    max_tokens: int = 0,
) -> Mean:
    """Values of tokens as a mean with the denominator of that name.

    Args:
      values: one a token.
      mask: 1 at the tokens of the completion, else 0.
      weights: of each sequence.
      denominator: one of DENOMINATORS.
      max_tokens: L_max of `constant`; 0: T.
    """
    tokens = mask * weights[..., None]
    if denominator == "tokens":
        return Mean.of(values, tokens)
    if denominator == "sequence":
        tokens = tokens / jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)
    total = jnp.sum(jnp.where(tokens == 0, 0, values) * tokens)
    length = max_tokens or mask.shape[-1] if denominator == "constant" else 1
    return Mean(total, length * jnp.sum(weights))


def _coefficient(batch: Batch, column: str, fixed: float) -> Array | float:
    """A controller's, alike in all rows; where there is none, what the hyperparameter says."""
    return jnp.max(batch[column]) if column in batch else fixed


def _metrics(
    outputs: Outputs,
    batch: Batch,
    given: Sampled,
    old: Array,
    surrogate: str,
    settings: Mapping[str, Any],
) -> dict[str, Mean]:
    """Means over the trained tokens; each is explained in docs/methods/grpo.md."""
    tokens = batch["mask"] * batch["weights"][..., None]

    def mean(values: Array) -> Mean:
        return Mean.of(values.astype(jnp.float32), tokens)

    r = exponential(given.logratio)
    found = {
        "ratio": mean(r),
        "kl_old": mean(k3(outputs.logps, old)),
        "entropy": mean(outputs.entropy),
        "logps": mean(outputs.logps),
    }
    if surrogate in ("clipped", "cispo", "gmpo"):
        low, high = settings["clip_low"], settings["clip_high"]
        seen = given.logratio if surrogate == "gmpo" else r - 1
        found["clip/low"] = mean((seen < -low) & (given.advantages < 0))
        found["clip/high"] = mean((seen > high) & (given.advantages > 0))
    caps = [cap for cap in (settings["dual_clip"], settings["ratio_cap"]) if cap is not None]
    if caps:
        found["clip/capped"] = mean((r > min(caps)) & (given.advantages < 0))
    if "ref_logps" in batch:
        found["kl"] = mean(k3(outputs.logps, batch["ref_logps"]))
    if "sampler_logps" in batch:
        found["sampler/difference"] = mean(jnp.abs(old - batch["sampler_logps"]))
    return found
