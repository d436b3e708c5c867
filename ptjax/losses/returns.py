"""From rewards of answers to returns and advantages of tokens: discounting, GAE, whitening.

A mask may have gaps (what a tool wrote): the token after a gap follows the one before it, and no
time passes between.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ptjax.losses.advantages import centered


def last_token(mask: Float[Array, "*B T"]) -> Float[Array, "*B T"]:
    """1 at each sequence's last token of the mask, else 0.

    Args:
      mask: 1 at the tokens of the completion, else 0.
    """
    place = jnp.cumsum(mask, -1)
    return jnp.where((mask > 0) & (place == place[..., -1:]), 1.0, 0.0).astype(mask.dtype)


def token_rewards(
    rewards: Float[Array, "*B"],
    mask: Float[Array, "*B T"],
    kl: Float[Array, "*B T"] | None = None,
    beta: Float[Array, ""] | float = 0.0,
) -> Float[Array, "*B T"]:
    """r_t = R at the last token, - β kl_t at each: KL in the reward (1909.08593, equation 2).

    Args:
      rewards: R of each sequence.
      mask: 1 at the tokens of the completion, else 0.
      kl: of each token, in nats; None for none.
      beta: β, in reward a nat.
    """
    ends = last_token(mask) * rewards[..., None]
    return ends if kl is None else ends - jnp.where(mask == 0, 0, beta * kl)


def discounted(
    rewards: Float[Array, "*B T"], mask: Float[Array, "*B T"], *, gamma: float = 1.0
) -> Float[Array, "*B T"]:
    """G_t = r_t + γ G_{t+1}, 0 outside the mask.

    Args:
      rewards: r of each token.
      mask: 1 at the tokens of the completion, else 0.
      gamma: γ, in [0, 1].
    """

    def back(later: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, inside = at
        now = jnp.where(inside > 0, reward + gamma * later, later)
        return now, jnp.where(inside > 0, now, 0)

    times = (jnp.moveaxis(rewards, -1, 0), jnp.moveaxis(mask, -1, 0))
    _, found = jax.lax.scan(back, jnp.zeros_like(rewards[..., 0]), times, reverse=True)
    return jnp.moveaxis(found, 0, -1)


def gae(
    rewards: Float[Array, "*B T"],
    values: Float[Array, "*B T"],
    mask: Float[Array, "*B T"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} - V_t: GAE (1506.02438, equation 16).

    After the last token V is 0.

    Args:
      rewards: r of each token.
      values: V of each token, from what stands before it.
      mask: 1 at the tokens of the completion, else 0.
      gamma: γ, in [0, 1].
      lam: λ, in [0, 1]: 1 is the return less V, 0 one step ahead.

    Returns:
      Advantages, and returns A + V; 0 outside the mask.
    """

    def back(later: tuple[Array, Array], at: tuple[Array, Array, Array]):
        next_advantage, next_value = later
        reward, value, inside = at
        advantage = reward + gamma * (next_value + lam * next_advantage) - value
        now = jnp.where(inside > 0, advantage, next_advantage)
        return (now, jnp.where(inside > 0, value, next_value)), jnp.where(inside > 0, advantage, 0)

    zero = jnp.zeros_like(values[..., 0])
    times = (jnp.moveaxis(rewards, -1, 0), jnp.moveaxis(values, -1, 0), jnp.moveaxis(mask, -1, 0))
    _, found = jax.lax.scan(back, (zero, zero), times, reverse=True)
    advantages = jnp.moveaxis(found, 0, -1)
    return advantages, jnp.where(mask > 0, advantages + values, 0)


def whiten(
    values: Float[Array, "*S"], weights: Float[Array, "*S"], *, center: bool = True
) -> Float[Array, "*S"]:
    """(x - mean) / sqrt(var + 1e-8) over the whole batch, var over n - 1; 0 where weights are 0.

    Args:
      values: x.
      weights: 0 where x is not to count, else 1.
      center: whether the mean is taken off; else x / sqrt(var + 1e-8).
    """
    valid = weights > 0
    gap = centered(values, valid, None)
    variance = jnp.sum(jnp.square(gap)) / jnp.maximum(jnp.sum(valid) - 1, 1)
    top = gap if center else jnp.where(valid, values, 0)
    return top * jax.lax.rsqrt(variance + 1e-8)
