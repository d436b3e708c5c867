"""The data's answers with some of the policy's own among them."""

import time

import numpy as np

from ptjax.stages.base import Context, Stage, in_place
from ptjax.stages.rollout import put_answer, told
from ptjax.types import Batch

_DRAW = 2


def _mixed_answers(
    ctx: Context, batch: Batch, carry: None, *, on_policy: float = 0.5
) -> tuple[Batch, None]:
    """Gives a share of the prompts the policy's own answer for the data's.

    λ of GKD (2306.13649, algorithm 1), drawn for each example where the paper draws for a batch.
    Held-out prompts keep the data's answers.
    """
    began = time.perf_counter()
    host, rollout = ctx.host, ctx.rollout
    assert host is not None and rollout is not None
    given = host.columns
    rows, prompts, keys = [], [], []
    there = [row for row, example in enumerate(host.examples) if ctx.training and example >= 0]
    asked = rollout.keys(ctx.step, [host.examples[row] for row in there], training=True)
    for row, key in zip(there, asked, strict=True):
        if np.random.default_rng([*key, _DRAW]).random() < on_policy:
            start = int(given["mask"][row, 0].argmax())
            rows.append(row)
            prompts.append(given["tokens"][row, 0, :start])
            keys.append(key)
    made = rollout.columns(len(host.examples), 1)
    made = {name: made[name] for name in ("tokens", "valid", "mask")}
    length = given["tokens"].shape[2]
    for name, column in made.items():
        column[..., :length] = given[name][..., : rollout.length]
    made["weights"] = given["weights"]
    if rows:
        answers = rollout.draw(*ctx.model(), [one.tolist() for one in prompts], keys, n=1)
        for row, prompt, (answer,) in zip(rows, prompts, answers, strict=True):
            for name in ("tokens", "valid", "mask"):
                made[name][row] = 0
            put_answer(made, row, 0, prompt, answer)
        ctx.logged.update(told(answers))
    if ctx.training:
        ctx.logged["rollout/share"] = len(rows) / max(1, len(there))
        ctx.logged["rollout/seconds"] = time.perf_counter() - began
    return in_place(ctx, batch, made), carry


mixed_answers = Stage(
    "mixed_answers",
    _mixed_answers,
    writes={"tokens": "B N T", "valid": "B N T", "mask": "B N T", "weights": "B N"},
    sequences=1,
)
