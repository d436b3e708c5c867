"""PPO with a value function: the clipped surrogate, and a value head or a critic beside it."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from ptjax.algorithms.base import Algorithm, Terms
from ptjax.algorithms.hparams import keywords
from ptjax.algorithms.online import MEAN_REWARD
from ptjax.algorithms.policy_gradient import policy_gradient
from ptjax.algorithms.policy_settings import check
from ptjax.errors import UserError, check_values, did_you_mean
from ptjax.losses.value import value_clipped, value_loss
from ptjax.stages.advantage import advantage
from ptjax.stages.base import Stage
from ptjax.stages.control import entropy_control, kl_control
from ptjax.stages.gae import gae, gae_and_entropy
from ptjax.stages.reference import ref_logps
from ptjax.stages.sampler import sampler
from ptjax.types import Batch, Mean, Outputs

CRITICS = {"shared": "lm_value", "separate": "lm_critic"}
"""Where the value function's head stands: on the policy's body, or on a body of its own."""
KL_IN = ("token_reward", "loss")
"""Where KL to the reference goes."""
_NO_CHOICE = {**keywords(advantage.run), **keywords(policy_gradient)}
"""What the checks of the policy gradient look at, as it is where PPO has no such setting."""


def ppo(
    outputs: Outputs,
    batch: Batch,
    *,
    denominator: str = "tokens",
    max_tokens: int = 0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
    beta: float = 0.05,
    kl: str = "k1",
    kl_in: str = "token_reward",
    kl_ratio: bool = False,
    entropy_coef: float = 0.0,
    correction: str = "none",
    correction_low: float = 0.0,
    correction_high: float = 2.0,
    off_policy: float | None = None,
    value_coef: float = 0.1,
    value_clip: float | None = 0.2,
) -> tuple[Terms, dict[str, Mean]]:
    """L = <clipped surrogate> + c_v <value loss> + β <KL> - α H (1707.06347, equation 9).

    Args:
      outputs: `logps`, `entropy`, `values`.
      batch: `mask`, `weights`, `advantages`, `returns`, `old_logps`, `old_values`, `policy_coef`;
        `ref_logps` where β > 0; `sampler_logps` where something corrects for the sampler;
        `kl_coef`, `entropy_coef` of controllers.
      denominator: of the surrogate's mean, see `ptjax.algorithms.policy_gradient`.
      max_tokens: L_max of the denominator `constant`; 0: the batch's length T.
      clip_low: ε_low.
      clip_high: ε_high.
      dual_clip: c: where A < 0 the surrogate is at most -c A.
      ratio_cap: δ, the most that an unclipped ratio is.
      beta: β; 0: no reference.
      kl: estimator, a row of `ptjax.losses.kl.KLS`.
      kl_in: `token_reward`, KL is the advantage's and no term of the loss; `loss`.
      kl_ratio: KL in the loss times the ratio.
      entropy_coef: α.
      correction: importance weights for another sampler.
      correction_low: of those weights.
      correction_high: of those weights.
      off_policy: threshold of `ptjax.losses.ratios.off_policy_mask`, in nats a token.
      value_coef: c_v.
      value_clip: how far values may go in the updates of one rollout, in units of reward; None: no
        bound.

    Returns:
      The terms, and the metrics of docs/methods/ppo.md.
    """
    found, metrics = policy_gradient(
        outputs,
        batch,
        denominator=denominator,
        max_tokens=max_tokens,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        ratio_cap=ratio_cap,
        beta=beta,
        kl=kl,
        kl_in=kl_in,
        kl_ratio=kl_ratio,
        entropy_coef=entropy_coef,
        correction=correction,
        correction_low=correction_low,
        correction_high=correction_high,
        off_policy=off_policy,
    )
    learns = jnp.max(batch["policy_coef"])
    terms: Terms = {
        name: (learns * coefficient, mean) for name, (coefficient, mean) in found.items()
    }
    tokens = batch["mask"] * batch["weights"][..., None]
    three = (outputs.values, batch["old_values"], batch["returns"])
    terms["value"] = (value_coef, Mean.of(value_loss(*three, value_clip=value_clip), tokens))
    metrics |= {
        "value/mean": Mean.of(outputs.values, tokens),
        "value/returns": Mean.of(batch["returns"], tokens),
        "value/clipped": Mean.of(value_clipped(*three, value_clip=value_clip), tokens),
    }
    return terms, metrics


def _head(*, critic: str = "shared") -> str:
    """What the model ends in."""
    if critic not in CRITICS:
        raise UserError(f"hparams.critic = {critic!r}{did_you_mean(str(critic), CRITICS)}")
    return CRITICS[critic]


def _needs(**values: Any) -> tuple[str, ...]:
    """The outputs that the loss reads; refuses what has no meaning."""
    if values["kl_in"] not in KL_IN:
        raise UserError(
            f"hparams.kl_in = {values['kl_in']!r}{did_you_mean(values['kl_in'], KL_IN)}"
        )
    shared = {**_NO_CHOICE, **values}
    if not values["beta"]:
        shared["kl_in"] = "loss"  # where there is no KL, the default is no mistake
    check(shared)
    clip, value_lam = values["value_clip"], values["value_lam"]
    wrong = {
        "value_coef": ("above 0", not values["value_coef"] > 0),
        "value_clip": ("above 0, or None", clip is not None and not clip > 0),
        "lam": ("in [0, 1]", not 0 <= values["lam"] <= 1),
        "value_lam": ("in [0, 1], or None", value_lam is not None and not 0 <= value_lam <= 1),
        "value_pretrain": ("not negative", values["value_pretrain"] < 0),
    }
    check_values(values, wrong, "hparams.")
    return ("logps", "entropy", "values")


def ppo_after(rollout: Stage) -> Algorithm:
    """PPO on the answers of a stage.

    Args:
      rollout: writes the sampled answers and their rewards: `tokens`, `valid`, `mask`, `weights`,
        `sampler_logps`, `rewards`.
    """
    reference = dataclasses.replace(ref_logps, wanted=lambda *, beta: beta > 0)
    return Algorithm(
        ppo,
        stages=(sampler, rollout, reference, kl_control, gae, gae_and_entropy, entropy_control),
        needs=_needs,
        data="prompts",
        head=_head,
        judge=MEAN_REWARD,
    )
