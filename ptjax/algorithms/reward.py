"""Reward models: a scalar head learns from comparisons, ratings, verdicts and steps."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ptjax.algorithms.base import Algorithm
from ptjax.algorithms.by_length import by_length, correlations
from ptjax.errors import UserError
from ptjax.forward import last_scores
from ptjax.losses import reward as losses
from ptjax.types import Batch, Mean, Outputs

Made = tuple[Mean, dict[str, Mean]]


def reward(
    outputs: Outputs, batch: Batch, *, center: float = 0.0, score_margin: float = 0.0
) -> Made:
    """Bradley-Terry (2307.09288, equation 2): L = -ls(r_c - r_r - m) + c (r_c + r_r)².

    Args:
      outputs: `scores`.
      batch: `valid`, `weights`, `margin`, with score_margin `scores`; two sequences each, chosen
        first.
      center: c, the pull of a pair's mean to 0 (2312.09244); 0.01 is usual.
      score_margin: k of m = margin + k (s_c - s_r), s the data's scores of both sides.
    """
    rewards, weights = _rewards(outputs, batch), batch["weights"][:, 0]
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    margin = batch["margin"]
    if score_margin:
        margin = margin + score_margin * (batch["scores"][:, 0] - batch["scores"][:, 1])
    values = losses.bradley_terry(chosen, rejected, margin, center=center)
    metrics = {
        "rewards/chosen": Mean.of(chosen, weights),
        "rewards/rejected": Mean.of(rejected, weights),
        "rewards/margin": Mean.of(chosen - rejected, weights),
        "accuracy": _share(chosen > rejected, weights),
    }
    lengths = _tokens(batch)
    metrics |= by_length(chosen, rejected, lengths[:, 0], lengths[:, 1], weights)
    return Mean.of(values, weights), metrics


def reward_ranked(outputs: Outputs, batch: Batch, *, center: float = 0.0) -> Made:
    """All comparisons of a prompt's ranked answers (2203.02155, equation 1), each prompt once.

    Args:
      outputs: `scores`.
      batch: `valid`, `weights`, `scores` (greater is better); N answers a prompt.
      center: c, the pull of a pair's mean to 0.
    """
    rewards = _rewards(outputs, batch)
    pairs = losses.ordered_pairs(batch["scores"], batch["weights"])
    some = jnp.max(batch["weights"], -1) * (jnp.sum(pairs, (1, 2)) > 0)
    right = rewards[:, :, None] > rewards[:, None, :]
    best = jnp.argmax(jnp.where(batch["weights"] > 0, batch["scores"], -jnp.inf), -1)
    chosen = jnp.argmax(jnp.where(batch["weights"] > 0, rewards, -jnp.inf), -1)
    metrics = {
        "accuracy": _share(right, pairs * some[:, None, None]),
        "best_found": _share(best == chosen, some),
    }
    lengths = _tokens(batch)
    better, worse, better_length, worse_length = jnp.broadcast_arrays(
        rewards[:, :, None], rewards[:, None], lengths[:, :, None], lengths[:, None]
    )
    compared = pairs * some[:, None, None]
    metrics |= by_length(better, worse, better_length, worse_length, compared)
    return Mean.of(losses.ranked(rewards, pairs, center=center), some), metrics


def reward_regression(outputs: Outputs, batch: Batch) -> Made:
    """L = (r - y)²: regression to ratings (2406.08673).

    Args:
      outputs: `scores`.
      batch: `valid`, `weights`, `scores` (the rating y, on the scale that rewards shall have).
    """
    rewards, weights = _rewards(outputs, batch)[:, 0], batch["weights"][:, 0]
    ratings = batch["scores"][:, 0]
    metrics = {
        "error": Mean.of(jnp.abs(rewards - ratings), weights),
        "rewards/mean": Mean.of(rewards, weights),
    }
    metrics |= correlations(_tokens(batch)[:, 0], rewards, ratings, weights, name="rating")
    return Mean.of(losses.squared_error(rewards, ratings), weights), metrics


def outcome_reward(outputs: Outputs, batch: Batch) -> Made:
    """Right or wrong (2110.14168): cross-entropy of the answer's verdict with its score.

    Args:
      outputs: `scores`.
      batch: `valid`, `weights`, `scores` (1 right, 0 wrong).
    """
    logits, weights = _rewards(outputs, batch)[:, 0], batch["weights"][:, 0]
    verdicts = batch["scores"][:, 0]
    metrics = {
        "accuracy": _share((logits > 0) == (verdicts > 0.5), weights),
        "rewards/right": Mean.of(logits, weights * (verdicts > 0.5)),
        "rewards/wrong": Mean.of(logits, weights * (verdicts <= 0.5)),
    }
    metrics |= correlations(_tokens(batch)[:, 0], logits, verdicts, weights, name="right")
    return Mean.of(losses.cross_entropy(logits, verdicts), weights), metrics


def process_reward(outputs: Outputs, batch: Batch) -> Made:
    """One verdict a step, at its last token: cross-entropy, a mean over steps.

    Hard labels: 2305.20050. Soft ones, the share of continuations that end right: 2312.08935.

    Args:
      outputs: `scores`.
      batch: `mask` (1 at each step's last token), `labels` in [0, 1], `weights`.
    """
    steps = batch["mask"] * batch["weights"][..., None]
    labels = batch["labels"]
    right = (outputs.scores > 0) == (labels > 0.5)
    metrics = {
        "accuracy": _share(right, steps),
        "accuracy/bad_steps": _share(right, steps * (labels <= 0.5)),
        "accuracy/good_steps": _share(right, steps * (labels > 0.5)),
    }
    return Mean.of(losses.cross_entropy(outputs.scores, labels), steps), metrics


def _rewards(outputs: Outputs, batch: Batch) -> Float[Array, "B N"]:
    """The score of each sequence: that at its last token."""
    return last_scores(outputs.scores, batch["valid"])


def _tokens(batch: Batch) -> Float[Array, "B N"]:
    """Of each sequence: the prompt is alike, so what differs is the answer's."""
    return jnp.sum(batch["valid"], -1, dtype=jnp.float32)


def _share(holds: Array, weights: Array) -> Mean:
    return Mean.of(holds.astype(jnp.float32), weights)


def _centered(*, center: float, score_margin: float = 0.0) -> tuple[str, ...]:
    for name, value in (("center", center), ("score_margin", score_margin)):
        if not value >= 0:
            raise UserError(f"hparams.{name} = {value}: it cannot be negative")
    return ("scores",)


def _tell(scores: np.ndarray, margin: np.ndarray, *, score_margin: float) -> str | None:
    """Which margins rewards shall keep, and whether scores are there that say none."""
    gaps = scores[:, 0] - scores[:, 1]
    asked, told = margin + score_margin * gaps, []
    if asked.any():
        told.append(f"rewards shall be apart by the margins of {_spread(asked)}")
    if gaps.any() and not score_margin:
        told.append(
            f"the scores of {_spread(gaps)} (differences) are not read: hparams.score_margin times "
            "them would be margins"
        )
    return "; ".join(told) or None


def _spread(values: np.ndarray) -> str:
    some = values[values != 0]
    size = f"{some.mean():.3g} on average, {some.max():.3g} at most"
    return f"{len(some)} of {len(values)} pairs, {size}"


REWARD = Algorithm(reward, needs=_centered, data="pairs", head="score", tell=_tell)
REWARD_RANKED = Algorithm(reward_ranked, needs=_centered, data="ranked", head="score")
REWARD_REGRESSION = Algorithm(reward_regression, needs=("scores",), data="rated", head="score")
OUTCOME_REWARD = Algorithm(outcome_reward, needs=("scores",), data="verdicts", head="score")
PROCESS_REWARD = Algorithm(process_reward, needs=("scores",), data="stepwise", head="score")
