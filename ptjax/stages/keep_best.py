"""Which answers of a group are imitated: the best by reward; the others leave the batch."""

import numpy as np
from jaxtyping import Bool, Float

from ptjax.data.pack_groups import pack_groups
from ptjax.data.plan import Blocks
from ptjax.sharding import batch_shards
from ptjax.stages.base import Context, Stage, in_place
from ptjax.types import Batch


def _keep_best(
    ctx: Context,
    batch: Batch,
    carry: None,
    *,
    keep: int = 1,
    least: float | None = None,
    drop_no_signal: bool = False,
    mask_truncated: bool = False,
) -> tuple[Batch, None]:
    """Keeps the best `keep` answers of each prompt; held-out answers stay as they are.

    The best of n: RAFT (2304.06767, algorithm 1). With `keep` = n and a `least` reward all answers
    that are good enough: rejection-sampling fine-tuning (2308.01825). The others get weight 0 and
    no place in a row, so that no pass reads them; with `mask_truncated` so do all that ran out of
    room, whatever their reward.
    """
    if not ctx.training:
        return batch, carry
    host, rollout = ctx.host, ctx.rollout
    assert host is not None and rollout is not None
    given = host.columns
    rewards, there = given["rewards"], given["weights"] > 0
    kept = best(
        rewards,
        there,
        keep=keep,
        least=least,
        drop_no_signal=drop_no_signal,
        eligible=given["truncated"] == 0 if mask_truncated else None,
    )
    ctx.logged["keep/answers"] = kept.sum() / max(there.sum(), 1)
    ctx.logged["keep/prompts"] = kept.any(1).sum() / max(there.any(1).sum(), 1)
    if kept.any():
        ctx.logged["keep/reward"] = float(rewards[kept].mean())
        ctx.logged["keep/margin"] = float(rewards[kept].mean() - rewards[there].mean())
        ctx.logged["keep/tokens"] = float(given["mask"].sum(-1)[kept].mean())
    made = {
        "valid": given["valid"] & kept[..., None],
        "mask": np.where(kept[..., None], given["mask"], 0),
        "weights": np.where(kept, given["weights"], 0),
    }
    blocks = Blocks(batch_shards(ctx.mesh), rollout.accumulate)
    made["pack"] = pack_groups(
        {"tokens": given["tokens"], **made},
        blocks,
        prompts_once=rollout.prompts_once,
        answer=rollout.max_tokens,
    )
    return in_place(ctx, batch, made), carry


def best(
    rewards: Float[np.ndarray, "B N"],
    there: Bool[np.ndarray, "B N"],
    *,
    keep: int,
    least: float | None = None,
    drop_no_signal: bool = False,
    eligible: Bool[np.ndarray, "B N"] | None = None,
) -> Bool[np.ndarray, "B N"]:
    """Which answers are among the best of their group.

    Args:
      rewards: of the answers.
      there: False for fillers and answers whose reward is missing: never kept, whatever it says.
      keep: answers of a group that stay, at most. Of equal ones those drawn first stay.
      least: reward that an answer needs; None: any.
      drop_no_signal: whether a group whose rewards are all equal stays out.
      eligible: those of them that may be imitated; None: all. The others are signal all the same.
    """
    some = there if eligible is None else there & eligible
    ranked = np.where(some, -rewards, np.inf)
    place = np.argsort(np.argsort(ranked, axis=1, kind="stable"), axis=1)
    kept = some & (place < keep)
    if least is not None:
        kept &= rewards >= least
    if drop_no_signal:
        lowest = np.where(there, rewards, np.inf).min(1, keepdims=True)
        highest = np.where(there, rewards, -np.inf).max(1, keepdims=True)
        kept &= highest > lowest
    return kept


keep_best = Stage(
    "keep_best",
    _keep_best,
    compares=lambda *, least, drop_no_signal: least is None or drop_no_signal,
)
"""Behind `rollout`; it adds no column."""
