"""Policy gradients from logged completions with rewards, no sampling: AWR, DRO."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def awr_weight(
    advantages: Float[Array, "*B"], *, temperature: float = 1.0, cap: float = 20.0
) -> Float[Array, "*B"]:
    """w = min(exp(A/β), cap): how much a logged completion is imitated.

    Args:
      advantages: A.
      temperature: β: a small one imitates the best alone.
      cap: greatest weight.
    """
    return jnp.exp(jnp.minimum(advantages / temperature, jnp.log(cap)))


def awr(
    logps: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    *,
    temperature: float = 1.0,
    cap: float = 20.0,
) -> Float[Array, "*B T"]:
    """L_t = -min(exp(A/β), cap) log p_t: advantage-weighted regression (1910.00177).

    Args:
      logps: under the policy, in nats.
      advantages: A, on each token.
      temperature: β.
      cap: greatest weight; 20 is the paper's.
    """
    weight = awr_weight(advantages, temperature=temperature, cap=cap)
    return -jax.lax.stop_gradient(weight) * logps


def dro(
    logratio: Float[Array, "*B"],
    rewards: Float[Array, "*B"],
    value: Float[Array, "*#B"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "*B"]:
    """L = ½ (R - V - τ u)², u = log p / p_ref of the completion: DRO (2405.19107).

    0 where the policy is the optimum of E[R] - τ KL(p ‖ p_ref), whose value is V: any completion
    of any policy may be learnt from.

    Args:
      logratio: u, summed over the completion, in nats.
      rewards: R.
      value: V: what is expected of the prompt; no gradient flows.
      temperature: τ, in reward a nat.
    """
    return jnp.square(rewards - jax.lax.stop_gradient(value) - temperature * logratio) / 2
