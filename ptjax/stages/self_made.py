"""Pairs that a run makes itself: the data's answers against its own, or its own by reward."""

import time

import numpy as np

from ptjax.rewards.choose import best_against
from ptjax.stages.base import Context, Stage, in_place
from ptjax.stages.reference import followed
from ptjax.stages.rollout import put_answer, told
from ptjax.types import Batch

_SEQUENCES = {
    "tokens": "B N T",
    "valid": "B N T",
    "mask": "B N T",
    "weights": "B N",
    "scores": "B N",
    "margin": "B",
}


def _self_rejected(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Chosen: the data's answer. Rejected: what the reference says to the same prompt.

    SPIN (2401.01335, section 4): the reference is the opponent, the policy as it was when the
    iteration began.
    """
    began = time.perf_counter()
    host, rollout = ctx.host, ctx.rollout
    assert host is not None and rollout is not None
    given = host.columns
    rows = [row for row, example in enumerate(host.examples) if example >= 0]
    starts = given["mask"][:, 0].argmax(-1)
    prompts = [given["tokens"][row, 0, : starts[row]] for row in rows]
    numbers = [host.examples[row] for row in rows]
    keys = rollout.keys(ctx.step, numbers, training=ctx.training)
    opponent = ctx.model(reference=True, trained=followed(ctx))
    answers = rollout.draw(*opponent, [prompt.tolist() for prompt in prompts], keys)
    made = rollout.columns(len(host.examples), 2)
    length = given["tokens"].shape[2]
    for name in ("tokens", "valid", "mask"):
        made[name][:, 0, :length] = given[name][:, 0, : rollout.length]
    identical = 0
    for row, prompt, (answer,) in zip(rows, prompts, answers, strict=True):
        put_answer(made, row, 1, prompt, answer)
        one, other = (made["tokens"][row, n, made["valid"][row, n]] for n in range(2))
        identical += np.array_equal(one, other)
        made["weights"][row] = given["weights"][row, 0]
        made["scores"][row] = 1, 0
    ctx.logged.update(told(answers), **{"rollout/identical": identical / len(rows)})
    ctx.logged["rollout/seconds"] = time.perf_counter() - began
    return in_place(ctx, batch, made), carry


def _rank_pair(
    ctx: Context,
    batch: Batch,
    carry: None,
    *,
    pairing: str = "worst",
    min_margin: float = 0.0,
) -> tuple[Batch, None]:
    """Chosen: the best by reward of n answers of the policy. Rejected: the worst, or a random one.

    Online DPO (2402.04792) with rewards as the judge. A prompt whose best answer is not better, or
    not by `min_margin`, has no pair: its weight is 0.
    """
    began = time.perf_counter()
    host, rollout = ctx.host, ctx.rollout
    assert host is not None and rollout is not None
    given = host.columns
    rows = [row for row, example in enumerate(host.examples) if example >= 0]
    prompts = [given["tokens"][row, 0, given["valid"][row, 0]] for row in rows]
    numbers = [host.examples[row] for row in rows]
    keys = rollout.keys(ctx.step, numbers, training=ctx.training)
    answers = rollout.draw(*ctx.model(), [prompt.tolist() for prompt in prompts], keys)
    rewards = rollout.judge(numbers, answers, training=ctx.training).total
    rewards = rewards.reshape(-1, rollout.n)
    made = rollout.columns(len(host.examples), 2)
    pairs = []
    for i, row in enumerate(rows):
        found = best_against(
            [one.text for one in answers[i]],
            rewards[i].tolist(),
            against=pairing,
            margin=min_margin,
            draw=np.random.default_rng([*keys[i], 1]),
        )
        if isinstance(found, str):
            continue
        for n, which in enumerate(found):
            put_answer(made, row, n, prompts[i], answers[i][which])
        made["weights"][row] = given["weights"][row, 0]
        made["scores"][row] = rewards[i][list(found)]
        made["margin"][row] = made["scores"][row, 0] - made["scores"][row, 1]
        pairs.append(made["scores"][row])
    ctx.logged.update(told(answers), **_figures(rewards, pairs))
    ctx.counted["rollout/reward"] = int(np.isfinite(rewards).sum())
    ctx.counted.update(dict.fromkeys(("rollout/chosen", "rollout/rejected"), len(pairs)))
    ctx.logged["rollout/seconds"] = time.perf_counter() - began
    return in_place(ctx, batch, made), carry


def _figures(rewards: np.ndarray, pairs: list[np.ndarray]) -> dict[str, float]:
    """What rewards say; a figure of nothing is left out."""
    figures = {"rollout/no_pair": 1 - len(pairs) / len(rewards)}
    scored = rewards[np.isfinite(rewards)]
    if len(scored):
        figures |= {
            "rollout/reward": float(scored.mean()),
            "rollout/reward_std": float(scored.std()),
        }
    if pairs:
        best, other = np.mean(pairs, axis=0).tolist()
        figures |= {"rollout/chosen": best, "rollout/rejected": other}
    return figures


self_rejected = Stage(
    "self_rejected",
    _self_rejected,
    writes=_SEQUENCES,
    reference=True,
    sequences=2,
    measures=("rollout/tokens", "rollout/truncated", "rollout/identical"),
)

rank_pair = Stage(
    "rank_pair",
    _rank_pair,
    writes=_SEQUENCES,
    sequences=2,
    judged=True,
    compares=lambda: True,
    measures=(
        "rollout/reward",
        "rollout/reward_std",
        "rollout/chosen",
        "rollout/rejected",
        "rollout/no_pair",
        "rollout/tokens",
        "rollout/truncated",
    ),
)
