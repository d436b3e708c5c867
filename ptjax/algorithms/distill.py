"""Distillation: a student learns a teacher's next-token distributions, or from its verdicts."""

import dataclasses
from typing import Any

from ptjax.algorithms.base import Algorithm, Terms
from ptjax.algorithms.policy_gradient import policy_gradient
from ptjax.algorithms.policy_settings import check_correction
from ptjax.errors import UserError, check_values, did_you_mean
from ptjax.losses.ratios import CORRECTIONS
from ptjax.ops.divergence import Divergence
from ptjax.stages.base import Stage
from ptjax.stages.mixed import mixed_answers
from ptjax.stages.old import off_policy, old_logps
from ptjax.stages.sampler import sampler
from ptjax.stages.teacher import teacher_advantage, teacher_hidden
from ptjax.types import Batch, Mean, Outputs


def gkd(outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
    """Generalised Jensen-Shannon divergence to the teacher, a mean over the trained tokens.

    GKD (2306.13649, equations 1 and 3): `ptjax.ops.divergence.token_divergence`.

    Args:
      outputs: `divergence`.
      batch: `mask`, `weights`.
    """
    return Mean.of(outputs.divergence, batch["mask"] * batch["weights"][..., None]), {}


def _forward(*, beta: float = 0.5, top_k: int = 0, temperature: float = 1.0) -> dict[str, Any]:
    """What the forward pass is to compute.

    Args:
      beta: β: 0 is KL(T ‖ S), 1 is KL(S ‖ T).
      top_k: tokens of the teacher that stand for themselves; 0: all.
      temperature: divides both models' logits.
    """
    given = {"beta": beta, "top_k": top_k, "temperature": temperature}
    wrong = {
        "beta": ("in [0, 1]", not 0 <= beta <= 1),
        "top_k": ("not negative", top_k < 0),
        "temperature": ("above 0", not temperature > 0),
    }
    check_values(given, wrong, "hparams.")
    return {"divergence": Divergence(beta, top_k), "temperature": temperature}


def on_policy_distillation(
    outputs: Outputs,
    batch: Batch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    correction: str = "none",
    correction_low: float = 0.0,
    correction_high: float = 2.0,
) -> tuple[Terms, dict[str, Mean]]:
    """The policy gradient of KL(S ‖ T), sampled: A_t = log p_T - log p_S, a mean over tokens.

    Args:
      outputs: `logps`, `entropy`.
      batch: `mask`, `weights`, `advantages`; `old_logps` where several updates follow a rollout;
        `sampler_logps` where something corrects for the sampler.
      clip_low: ε_low of the clipped surrogate.
      clip_high: ε_high.
      correction: importance weights for another sampler.
      correction_low: of those weights.
      correction_high: of those weights.
    """
    return policy_gradient(
        outputs,
        batch,
        denominator="tokens",
        clip_low=clip_low,
        clip_high=clip_high,
        correction=correction,
        correction_low=correction_low,
        correction_high=correction_high,
    )


def _needs(*, correction: str, **values: Any) -> tuple[str, ...]:
    if correction not in CORRECTIONS:
        raise UserError(
            f"hparams.correction = {correction!r}{did_you_mean(correction, CORRECTIONS)}"
        )
    wrong = {name: ("not negative", not values[name] >= 0) for name in ("clip_low", "clip_high")}
    check_values(values, wrong, "hparams.")
    check_correction({"correction": correction, **values})
    return ("logps", "entropy")


GKD = Algorithm(gkd, stages=(teacher_hidden,), needs=("divergence",), forward=_forward)
"""On the data's answers: GKD with λ = 0, and with β = 0 word-level distillation."""


def gkd_after(rollout: Stage) -> Algorithm:
    """GKD on the student's own answers: λ = 1.

    Args:
      rollout: writes the sampled answers: `tokens`, `valid`, `mask`, `weights`.
    """
    return Algorithm(
        gkd,
        stages=(rollout, teacher_hidden),
        needs=("divergence",),
        forward=_forward,
        data="prompts",
    )


def _share(*, on_policy: float = 0.5) -> tuple[str, ...]:
    if not 0 < on_policy < 1:
        raise UserError(
            f"hparams.on_policy = {on_policy}: it must be between 0 and 1; gkd learns on the "
            "data's answers alone, gkd_on_policy on the student's"
        )
    return ("divergence",)


GKD_MIXED = Algorithm(
    gkd,
    stages=(mixed_answers, teacher_hidden),
    needs=_share,
    forward=_forward,
    data="answers",
)
"""GKD with λ between: the data's answers, a share of them the student's own."""


def on_policy_distillation_after(rollout: Stage) -> Algorithm:
    """Distillation by the policy gradient on the answers of a stage.

    Args:
      rollout: writes the sampled answers: `tokens`, `valid`, `mask`, `weights`, `sampler_logps`.
    """
    before = dataclasses.replace(old_logps, wanted=off_policy)
    stages = (sampler, rollout, before, teacher_advantage)
    return Algorithm(on_policy_distillation, stages=stages, needs=_needs, data="prompts")
