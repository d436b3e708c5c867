"""Imitation of the policy's own best answers: RAFT, best of n, rejection-sampling fine-tuning."""

from ptjax.algorithms.base import Algorithm
from ptjax.algorithms.online import MEAN_REWARD
from ptjax.algorithms.sft import token_weights
from ptjax.errors import UserError
from ptjax.losses.nll import nll
from ptjax.stages.base import Stage
from ptjax.stages.keep_best import keep_best
from ptjax.types import Batch, Mean, Outputs


def raft(outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
    """L = Σ w_t · -log π(y_t) / Σ w_t over the answers that were kept: SFT on them (2304.06767).

    Args:
      outputs: `logps`, `entropy`.
      batch: `mask`, `weights`.
    """
    weights = token_weights(batch)
    return Mean.of(nll(outputs.logps), weights), {"entropy": Mean.of(outputs.entropy, weights)}


def _needs(*, keep: int) -> tuple[str, ...]:
    if keep < 1:
        raise UserError(f"hparams.keep = {keep}: it must be at least 1")
    return ("logps", "entropy")


def _forward() -> dict[str, float]:
    """A likelihood is that of temperature 1, whatever the answers were sampled at."""
    return {"temperature": 1.0}


def raft_after(rollout: Stage) -> Algorithm:
    """RAFT on the answers of a stage.

    Args:
      rollout: writes the sampled answers and their rewards: `tokens`, `valid`, `mask`, `weights`,
        `rewards`.
    """
    return Algorithm(
        raft,
        stages=(rollout, keep_best),
        needs=_needs,
        forward=_forward,
        data="prompts",
        judge=MEAN_REWARD,
    )
