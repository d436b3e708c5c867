"""Presets of the policy gradient by paper name: settings of one loss and of its stages."""

import dataclasses
import functools
from typing import Any

from ptjax.algorithms.base import Algorithm
from ptjax.algorithms.hparams import keywords
from ptjax.algorithms.policy_gradient import policy_gradient
from ptjax.algorithms.policy_settings import needs
from ptjax.stages.advantage import advantage
from ptjax.stages.base import Stage
from ptjax.stages.control import entropy_control, kl_control
from ptjax.stages.groups import greedy_rewards
from ptjax.stages.old import old_logps, old_outputs
from ptjax.stages.reference import ref_logps, synced_reference
from ptjax.stages.sampler import sampler
from ptjax.types import Batch, Mean, Outputs

_REFERENCE = dataclasses.replace(ref_logps, wanted=lambda *, beta: beta > 0)
_FOLLOWING = dataclasses.replace(
    synced_reference, wanted=lambda *, beta, sync_every: beta > 0 and sync_every > 0
)
_AFTER = (_FOLLOWING, _REFERENCE, old_logps, old_outputs, kl_control, entropy_control, advantage)

_SUMS: dict[str, Any] = {"surrogate": "reinforce", "denominator": "sequence_sum", "scale": "none"}

PRESETS: dict[str, dict[str, Any]] = {
    # 2402.03300
    "grpo": {},
    # 2503.20783
    "dr_grpo": {"denominator": "constant", "scale": "none"},
    # 2503.14476
    "dapo": {"denominator": "tokens", "clip_high": 0.28, "dynamic_sampling": True},
    # 2507.18071
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "gspo_token": {"ratio": "sequence_token", "clip_low": 3e-4, "clip_high": 4e-4},
    # 2506.13585
    "cispo": {"surrogate": "cispo", "denominator": "tokens", "clip_low": 1.0, "clip_high": 4.0},
    # 2507.20673
    "gmpo": {"surrogate": "gmpo", "clip_low": 0.4, "clip_high": 0.4},
    # 2511.20347
    "sapo": {"surrogate": "sapo"},
    # 2602.05261; clipped as GSPO, whose ratio it has
    "luspo": {
        "ratio": "sequence",
        "denominator": "sequence_sum",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
    },
    # 2602.10693, as TRL 1.16
    "vespo": {"surrogate": "vespo", "denominator": "tokens"},
    # 2402.14740; the ratio and its clip as TRL 1.16
    "rloo": {
        "ratio": "sequence_sum",
        "baseline": "leave_one_out",
        "scale": "none",
        "beta": 0.05,
        "kl": "k1",
        "kl_in": "reward",
    },
    # Williams 1992
    "reinforce": {**_SUMS, "baseline": "batch"},
    # 2501.03262
    "reinforce_pp": {
        "denominator": "tokens",
        "baseline": "none",
        "scale": "none",
        "whitened": True,
        "beta": 0.01,
        "kl": "k1",
        "kl_in": "token_reward",
    },
    "reinforce_pp_baseline": {
        "denominator": "tokens",
        "scale": "none",
        "whitened": True,
        "beta": 1e-3,
        "kl": "k2",
    },
    # 2310.10505
    "remax": {**_SUMS, "baseline": "greedy"},
    # 2505.23585
    "opo": {**_SUMS, "baseline": "length_weighted"},
    # 2504.02546
    "gpg": {"surrogate": "reinforce", "denominator": "tokens", "scale": "signal"},
}
"""What a paper sets otherwise than `policy_gradient` and the stages do by default."""


def _missed_reward(outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
    """The mean reward of answers, its sign turned."""
    return Mean.of(-batch["rewards"], batch["weights"]), {}


MEAN_REWARD = Algorithm(_missed_reward, needs=(), reads=("rewards", "weights"))
"""What held-out prompts are judged by, whatever the loss."""


def online(rollout: Stage, names: tuple[str, ...] = tuple(PRESETS)) -> dict[str, Algorithm]:
    """The presets, with answers from a stage.

    Args:
      rollout: writes the sampled answers and their rewards: `tokens`, `valid`, `mask`, `weights`,
        `sampler_logps`, `rewards`, `reward_parts`, `truncated`.
      names: rows of PRESETS.
    """
    return {name: _preset(rollout, PRESETS[name]) for name in names}


def _preset(rollout: Stage, settings: dict[str, Any]) -> Algorithm:
    stages = tuple(
        dataclasses.replace(stage, run=_with(stage.run, settings))
        for stage in (sampler, rollout, greedy_rewards, *_AFTER)
    )
    return Algorithm(
        _with(policy_gradient, settings),
        stages=stages,
        needs=needs,
        data="prompts",
        judge=MEAN_REWARD,
    )


def _with(function: Any, settings: dict[str, Any]) -> Any:
    """The function with those of the settings for defaults that it takes by keyword."""
    taken = {name: value for name, value in settings.items() if name in keywords(function)}
    return functools.partial(function, **taken) if taken else function
