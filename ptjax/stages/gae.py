"""What PPO learns from: values of sampled tokens, advantages and returns of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ptjax.losses.kl import KLS
from ptjax.losses.returns import gae as estimate
from ptjax.losses.returns import token_rewards, whiten
from ptjax.losses.value import explained_variance
from ptjax.sharding import put_batch
from ptjax.stages.base import Context, Stage, without_truncated
from ptjax.stages.old import asks_entropy
from ptjax.stages.token_advantages import high_entropy
from ptjax.types import Batch

_READ = ("rewards", "weights", "mask", "ref_logps", "kl_coef")


def _gae(
    ctx: Context,
    batch: Batch,
    carry: None,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    value_lam: float | None = None,
    beta: float = 0.05,
    kl: str = "k1",
    kl_in: str = "token_reward",
    whitened: bool = True,
    top_entropy: float = 1.0,
    entropy_target: float | None = None,
    mask_truncated: bool = False,
    value_pretrain: int = 0,
) -> tuple[Batch, None]:
    """Adds `old_logps` and `old_values` of one pass, `advantages` and `returns` made of them.

    r_t = -β kl_t where `kl_in` is `token_reward`, and the answer's reward at its last token; A by
    GAE (1506.02438, equation 16) with γ and λ, R = A + V, of another λ where `value_lam` is set
    (2503.01491). Advantages are whitened over the batch's tokens; then 0 on tokens below the
    quantile of entropy. Where something asks for it, `old_entropy` is of the same pass. With
    `mask_truncated` answers that ran out of room are left out beforehand, of statistics too: where
    they would have ended nobody knows. `policy_coef` is 0 for all updates of a rollout that begins
    within the first `value_pretrain` optimizer steps.
    """
    asked = asks_entropy(top_entropy=top_entropy, entropy_target=entropy_target)
    said = ctx.policy(batch, ("logps", "values", *(("entropy",) if asked else ())))
    if mask_truncated:
        batch = without_truncated(ctx, batch)
    read = {name: batch[name] for name in _READ if name in batch}
    if kl_in == "loss":
        read.pop("ref_logps", None)
    if asked:
        read["old_entropy"] = said.entropy
    made, figures = actor_critic_columns(
        read,
        said.logps,
        said.values,
        gamma=gamma,
        lam=lam,
        value_lam=value_lam,
        beta=beta,
        kl=kl,
        whitened=whitened,
        top_entropy=top_entropy,
    )
    if asked:
        made["old_entropy"] = said.entropy
    ctx.logged["value/explained"] = figures["explained"]
    if "kl" in figures:
        ctx.logged["kl/reward"] = figures["kl"]
    learns = np.full(len(batch["weights"]), ctx.step >= value_pretrain, np.float32)
    made |= put_batch({"policy_coef": learns}, ctx.mesh, whole=True)
    return batch | made, carry


@functools.partial(
    jax.jit,
    static_argnames=("gamma", "lam", "value_lam", "beta", "kl", "whitened", "top_entropy"),
)
def actor_critic_columns(
    batch: Batch,
    old_logps: Array,
    old_values: Array,
    *,
    gamma: float,
    lam: float,
    value_lam: float | None,
    beta: float,
    kl: str,
    whitened: bool,
    top_entropy: float,
) -> tuple[Batch, dict[str, Array]]:
    """The columns of PPO, [B, N, T] each, and figures of the batch.

    Answers of weight 0, fillers and those whose reward is missing, get 0 and count nowhere.

    Args:
      batch: `rewards`, `weights`, `mask`; `ref_logps` where KL is in the reward; `kl_coef` of a
        controller; `old_entropy` where `top_entropy` < 1.
      old_logps: of the policy that sampled, in nats.
      old_values: of its value function, in units of reward.
      gamma: γ.
      lam: λ of the advantages.
      value_lam: λ of the returns; None: the same.
      beta: β, in reward a nat, where no controller has written `kl_coef`.
      kl: estimator, a row of `ptjax.losses.kl.KLS`.
      whitened: whether advantages get mean 0 and variance 1.
      top_entropy: share of tokens, those of the greatest entropy, that keep their advantage.
    """
    tokens = batch["mask"] * (batch["weights"] > 0)[..., None]
    old_values = jnp.where(tokens == 0, 0, old_values)
    rewards = token_rewards(batch["rewards"], tokens)
    figures = {}
    if "ref_logps" in batch:
        drift = jnp.where(tokens == 0, 0, KLS[kl](old_logps, batch["ref_logps"]))
        coefficient = jnp.max(batch["kl_coef"]) if "kl_coef" in batch else beta
        rewards = token_rewards(batch["rewards"], tokens, drift, coefficient)
        figures["kl"] = jnp.sum(drift) / jnp.maximum(jnp.sum(tokens), 1)
    advantages, returns = estimate(rewards, old_values, tokens, gamma=gamma, lam=lam)
    if value_lam is not None:
        _, returns = estimate(rewards, old_values, tokens, gamma=gamma, lam=value_lam)
    figures["explained"] = explained_variance(old_values, returns, tokens)
    if whitened:
        advantages = whiten(advantages, tokens)
    if top_entropy < 1:
        advantages = advantages * high_entropy(batch["old_entropy"], tokens, top_entropy)
    columns = {
        "old_logps": old_logps,
        "old_values": old_values,
        "advantages": advantages,
        "returns": returns,
    }
    return columns, figures


def _without_entropy(*, top_entropy: float, entropy_target: float | None) -> bool:
    return not asks_entropy(top_entropy=top_entropy, entropy_target=entropy_target)


gae = Stage(
    "gae",
    _gae,
    writes={
        **dict.fromkeys(("old_logps", "old_values", "advantages", "returns"), "B N T"),
        "policy_coef": "B",
    },
    passes=1,
    wanted=_without_entropy,
)
"""After everything that writes what it reads."""

gae_and_entropy = dataclasses.replace(
    gae,
    name="gae_and_entropy",
    writes={**gae.writes, "old_entropy": "B N T"},
    wanted=asks_entropy,
)
"""In its place where something asks for entropy."""
