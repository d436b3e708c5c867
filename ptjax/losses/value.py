"""Losses of a value function: what a policy gradient's baseline learns from."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def value_loss(
    values: Float[Array, "*T"],
    old_values: Float[Array, "*T"],
    returns: Float[Array, "*T"],
    *,
    value_clip: float | None = 0.2,
) -> Float[Array, "*T"]:
    """L_t = ½ max((v - R)², (clip(v, o - c, o + c) - R)²), o the value before the updates.

    The squared error of PPO (1707.06347, equation 9), clipped as in its authors' code: a step
    beyond c that comes nearer to R gets no gradient, one that goes away from R does.

    Args:
      values: v, in units of reward.
      old_values: o.
      returns: R, what v is to become.
      value_clip: c, in units of reward; None: the squared error alone.
    """
    error = jnp.square(values - returns)
    if value_clip is not None:
        error = jnp.maximum(error, _clipped_error(values, old_values, returns, value_clip))
    return error / 2


def value_clipped(
    values: Float[Array, "*T"],
    old_values: Float[Array, "*T"],
    returns: Float[Array, "*T"],
    *,
    value_clip: float | None = 0.2,
) -> Float[Array, "*T"]:
    """1 where the clip takes the gradient away, else 0.

    Args:
      values: v, in units of reward.
      old_values: o.
      returns: R.
      value_clip: c; None: nowhere.
    """
    if value_clip is None:
        return jnp.zeros_like(values)
    clipped = _clipped_error(values, old_values, returns, value_clip)
    return (clipped > jnp.square(values - returns)).astype(values.dtype)


def explained_variance(
    values: Float[Array, "*T"], returns: Float[Array, "*T"], weights: Float[Array, "*T"]
) -> Float[Array, ""]:
    """1 - Var(R - v) / Var(R) over the weighted tokens; 0 where R does not vary.

    1: values say all; 0: no more than their mean would; below: less.

    Args:
      values: v.
      returns: R.
      weights: 0 where a token is not to count.
    """

    def spread(x: Array) -> Array:
        x = jnp.where(weights == 0, 0, x)
        total = jnp.maximum(jnp.sum(weights), 1)
        gap = x - jnp.sum(x * weights) / total
        return jnp.sum(jnp.square(gap) * weights) / total

    whole = spread(returns)
    return jnp.where(whole > 0, 1 - spread(returns - values) / jnp.where(whole > 0, whole, 1), 0)


def _clipped_error(values: Array, old_values: Array, returns: Array, value_clip: float) -> Array:
    near = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
    return jnp.square(near - returns)
