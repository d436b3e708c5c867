"""PPO with a value function: the clipped surrogate, and a value head or a critic beside it."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from ptjax.algorithms.base import Algorithm, Terms
from ptjax.algorithms.online import MEAN_REWARD
from ptjax.algorithms.policy_gradient import DENOMINATORS, policy_gradient
from ptjax.errors import UserError, check_values, did_you_mean
from ptjax.losses.kl import KLS
from ptjax.losses.ratios import CORRECTIONS
from ptjax.losses.value import value_clipped, value_loss
from ptjax.stages.base import Stage
from ptjax.stages.control import kl_control
from ptjax.stages.gae import gae
from ptjax.stages.reference import ref_logps
from ptjax.stages.sampler import sampler
from ptjax.types import Batch, Mean, Outputs

CRITICS = {"shared": "lm_value", "separate": "lm_critic"}
"""Where the value function's head stands: on the policy's body, or on a body of its own."""


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
    entropy_coef: float = 0.0,
    correction: str = "none",
    correction_low: float = 0.0,
    correction_high: float = 2.0,
    value_coef: float = 0.1,
    value_clip: float | None = 0.2,
) -> tuple[Terms, dict[str, Mean]]:
    """L = <clipped surrogate> + c_v <value loss> - α H (1707.06347, equation 9).

    Args:
      outputs: `logps`, `entropy`, `values`.
      batch: `mask`, `weights`, `advantages`, `returns`, `old_logps`, `old_values`, `policy_coef`;
        `sampler_logps` where something corrects for the sampler.
      denominator: of the surrogate's mean, see `ptjax.algorithms.policy_gradient`.
      max_tokens: L_max of the denominator `constant`; 0: the batch's length T.
      clip_low: ε_low.
      clip_high: ε_high.
      dual_clip: c: where A < 0 the surrogate is at most -c A.
      ratio_cap: δ, the most that an unclipped ratio is.
      entropy_coef: α.
      correction: importance weights for another sampler.
      correction_low: of those weights.
      correction_high: of those weights.
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
        kl_in="token_reward",
        entropy_coef=entropy_coef,
        correction=correction,
        correction_low=correction_low,
        correction_high=correction_high,
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
    for name, known in {"denominator": DENOMINATORS, "kl": KLS, "correction": CORRECTIONS}.items():
        if values[name] not in known:
            raise UserError(f"hparams.{name} = {values[name]!r}{did_you_mean(values[name], known)}")
    clip, dual, cap = values["value_clip"], values["dual_clip"], values["ratio_cap"]
    value_lam, target = values["value_lam"], values["kl_target"]
    wrong = {
        "max_tokens": ("not negative", values["max_tokens"] < 0),
        "clip_low": ("not negative", not values["clip_low"] >= 0),
        "clip_high": ("not negative", not values["clip_high"] >= 0),
        "dual_clip": ("above 1", dual is not None and not dual > 1),
        "ratio_cap": ("above 1 + clip_high", cap is not None and not cap > 1 + values["clip_high"]),
        "entropy_coef": ("not negative", not values["entropy_coef"] >= 0),
        "value_coef": ("above 0", not values["value_coef"] > 0),
        "value_clip": ("above 0, or None", clip is not None and not clip > 0),
        "gamma": ("in [0, 1]", not 0 <= values["gamma"] <= 1),
        "lam": ("in [0, 1]", not 0 <= values["lam"] <= 1),
        "value_lam": ("in [0, 1], or None", value_lam is not None and not 0 <= value_lam <= 1),
        "beta": ("not negative", not values["beta"] >= 0),
        "kl_target": (
            "above 0, and beta too",
            target is not None and not (target > 0 and values["beta"] > 0),
        ),
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
        stages=(sampler, rollout, reference, kl_control, gae),
        needs=_needs,
        data="prompts",
        head=_head,
        judge=MEAN_REWARD,
    )
