"""How much better an answer was than expected: baselines over groups of answers to one prompt.

Answers that are not valid (no reward, filler) are left out of all statistics and get 0. Rewards are
taken from their smallest before anything is summed: where all valid ones are equal the result is
exactly 0, in any precision.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Axis = int | tuple[int, ...] | None


def above_least(values: Float[Array, "*S"], valid: Bool[Array, "*S"], axis: Axis = -1) -> Array:
    """x - min of the valid x; 0 where not valid.

    Args:
      values: x.
      valid: which are.
      axis: over what; None for all.
    """
    low = jnp.min(jnp.where(valid, values, jnp.inf), axis=axis, keepdims=True)
    return jnp.where(valid, values - jnp.where(jnp.isfinite(low), low, 0), 0)


def centered(values: Float[Array, "*S"], valid: Bool[Array, "*S"], axis: Axis = -1) -> Array:
    """x - mean of the valid x; 0 where not valid.

    Args:
      values: x.
      valid: which are.
      axis: over what; None for all.
    """
    gap = above_least(values, valid, axis)
    return jnp.where(valid, gap - jnp.sum(gap, axis, keepdims=True) / _count(valid, axis), 0)


def deviation(values: Float[Array, "*S"], valid: Bool[Array, "*S"], axis: Axis = -1) -> Array:
    """Standard deviation of the valid x, over n - 1, axes kept; 0 where there are fewer than 2.

    Args:
      values: x.
      valid: which are.
      axis: over what; None for all.
    """
    total = jnp.sum(jnp.square(centered(values, valid, axis)), axis, keepdims=True)
    return jnp.sqrt(total / jnp.maximum(_count(valid, axis) - 1, 1))


def group_mean(rewards: Float[Array, "*B N"], valid: Bool[Array, "*B N"]) -> Float[Array, "*B N"]:
    """A = R - mean of the group: Dr. GRPO (2503.20783); before scaling GRPO (2402.03300).

    Args:
      rewards: R.
      valid: which answers have one.
    """
    return centered(rewards, valid, -1)


def leave_one_out(
    rewards: Float[Array, "*B N"], valid: Bool[Array, "*B N"]
) -> Float[Array, "*B N"]:
    """A_i = R_i - mean of the group's others: RLOO (2402.14740). 0 for one alone.

    Args:
      rewards: R.
      valid: which answers have one.
    """
    gap, count = above_least(rewards, valid), jnp.sum(valid, -1, keepdims=True)
    others = (jnp.sum(gap, -1, keepdims=True) - gap) / jnp.maximum(count - 1, 1)
    return jnp.where(valid & (count > 1), gap - others, 0)


def length_weighted(
    rewards: Float[Array, "*B N"], valid: Bool[Array, "*B N"], lengths: Float[Array, "*B N"]
) -> Float[Array, "*B N"]:
    """A = R - Σ_j n_j R_j / Σ_j n_j: OPO's baseline of least variance (2505.23585).

    Args:
      rewards: R.
      valid: which answers have one.
      lengths: n, tokens of each answer.
    """
    gap, n = above_least(rewards, valid), jnp.where(valid, lengths, 0)
    mean = jnp.sum(n * gap, -1, keepdims=True) / jnp.maximum(jnp.sum(n, -1, keepdims=True), 1)
    return jnp.where(valid, gap - mean, 0)


def against_greedy(
    rewards: Float[Array, "*B N"], valid: Bool[Array, "*B N"], greedy: Float[Array, "*B"]
) -> Float[Array, "*B N"]:
    """A = R - reward of the prompt's greedy answer: ReMax (2310.10505).

    Args:
      rewards: R.
      valid: which answers have one.
      greedy: reward of the most likely answer; where it is NaN nothing is learnt of the prompt.
    """
    known = valid & ~jnp.isnan(greedy)[..., None]
    return jnp.where(known, rewards - greedy[..., None], 0)


def normalized_parts(
    parts: Float[Array, "*B N F"],
    valid: Bool[Array, "*B N"],
    part_weights: Float[Array, " F"],
    *,
    eps: float = 1e-4,
) -> Float[Array, "*B N"]:
    """A = Σ_f w_f (R_f - mean) / (std + ε), each over its group: GDPO (2601.05242).

    A reward that varies little is not drowned by one that varies much. A is then to be divided
    by its deviation over the batch.

    Args:
      parts: w_f R_f, each reward times its weight; NaN where it abstained.
      valid: which answers have any.
      part_weights: w_f.
      eps: ε, on the scale of R_f.
    """
    known, size = valid[..., None] & ~jnp.isnan(parts), jnp.abs(part_weights)
    gap, spread = centered(parts, known, -2), deviation(parts, known, -2)
    return jnp.sum(over(size * gap, spread + size * eps), -1)


def over(gap: Float[Array, "*S"], spread: Float[Array, "*#S"]) -> Float[Array, "*S"]:
    """gap / spread; the gap itself where the spread is 0, as then it is 0 too.

    Args:
      gap: differences to a baseline.
      spread: a deviation, with what keeps it from 0.
    """
    return gap / jnp.where(spread > 0, spread, 1)


def signal(rewards: Float[Array, "*B N"], valid: Bool[Array, "*B N"]) -> Bool[Array, "*B"]:
    """Whether a group's valid rewards differ at all.

    Args:
      rewards: R.
      valid: which answers have one.
    """
    return jnp.any(above_least(rewards, valid) > 0, -1)


def _count(valid: Array, axis: Axis) -> Array:
    return jnp.maximum(jnp.sum(valid, axis, keepdims=True), 1)
