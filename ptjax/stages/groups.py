"""Groups: the policy's own answers to each prompt, and what rewards say of them."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ptjax.data import HostBatch
from ptjax.data.pack_groups import pack_groups
from ptjax.data.plan import Blocks
from ptjax.data.prompts import Prompt
from ptjax.errors import UserError
from ptjax.generate.transcript import Completion
from ptjax.rewards.score import Scores
from ptjax.sharding import batch_shards, put_batch
from ptjax.stages.base import GROUP, Context, Stage, in_place
from ptjax.stages.rollout import Columns, Rollout, put_answer, told
from ptjax.stages.sampler import sampled_by
from ptjax.types import Batch

_log = logging.getLogger("ptjax")

_ROUNDS = 4
"""Batches of prompts that dynamic sampling asks about at most, where nothing else is set."""


class Group(NamedTuple):
    """One prompt, its answers and their rewards."""

    example: int
    prompt: np.ndarray
    weight: float
    answers: Sequence[Completion]
    total: np.ndarray
    """float32 [n]; NaN where a reward is missing."""
    each: np.ndarray
    """float32 [n, F], times the rewards' weights, those of weight 0 as they are; NaN where one
    abstained or is missing."""
    fails: np.ndarray
    """bool [n, F]: where a reward failed."""

    @property
    def told_apart(self) -> bool:
        """Whether its rewards differ: without that there is nothing to learn from it."""
        found = self.total[np.isfinite(self.total)]
        return len(found) > 1 and bool((found != found[0]).any())


def _rollout(
    ctx: Context,
    batch: Batch,
    carry: None,
    *,
    dynamic_sampling: bool = False,
    max_rounds: int = _ROUNDS,
) -> tuple[Batch, None]:
    """Samples answers to each prompt and asks the rewards about them.

    With dynamic sampling (DAPO, 2503.14476, section 3.2) groups whose rewards are all equal are
    left out, and more prompts are taken until the batch is full or `max_rounds` are over; what is
    then missing has no weight. Held-out prompts get one answer each.
    """
    host, rollout = ctx.host, ctx.rollout
    assert host is not None and rollout is not None
    places, spent = len(host.examples), {"rollout": 0.0, "reward": 0.0}
    sampled = groups = _groups(ctx, host, spent, before=())
    rounds = 1
    if dynamic_sampling and ctx.training:
        groups = [group for group in sampled if group.told_apart]
        while len(groups) < places and rounds < max_rounds and ctx.more is not None:
            if (others := ctx.more()) is None:
                break
            further = _groups(ctx, others, spent, before=[group.example for group in sampled])
            sampled, rounds = [*sampled, *further], rounds + 1
            groups += [group for group in further if group.told_apart]
        ctx.logged["rollout/rounds"] = rounds
        ctx.logged["rollout/filled"] = min(len(groups) / places, 1.0)
    made = _columns(ctx, groups[:places], places)
    _table(ctx, sampled, groups[:places])
    _say(ctx, sampled, spent)
    host.columns.clear()
    return in_place(ctx, batch, made), carry


def _groups(
    ctx: Context, host: HostBatch, spent: dict[str, float], *, before: Sequence[int]
) -> list[Group]:
    """Answers to a batch of prompts, and their rewards; adds up the seconds of both.

    `before` are examples that were asked in this step already.
    """
    rollout = ctx.rollout
    assert rollout is not None
    began = time.perf_counter()
    given = host.columns
    rows = [row for row, example in enumerate(host.examples) if example >= 0]
    if not rows:
        return []
    numbers = [host.examples[row] for row in rows]
    prompts = [given["tokens"][row, 0, given["valid"][row, 0]] for row in rows]
    answers = _answers(
        ctx,
        numbers,
        [prompt.tolist() for prompt in prompts],
        n=rollout.n if ctx.training else 1,
        temperature=None if ctx.training else rollout.eval_temperature,
        before=before,
    )
    sampled = time.perf_counter()
    scores = _scores(rollout, numbers, answers, training=ctx.training)
    spent["rollout"] += sampled - began
    spent["reward"] += time.perf_counter() - sampled
    n = len(answers[0])
    weights = np.array([reward.weight or 1.0 for reward in rollout.rewards], np.float32)
    return [
        Group(
            numbers[i],
            prompts[i],
            float(given["weights"][row, 0]),
            answers[i],
            scores.total[i * n : (i + 1) * n],
            scores.each[i * n : (i + 1) * n] * weights,
            scores.fails[i * n : (i + 1) * n],
        )
        for i, row in enumerate(rows)
    ]


def _answers(
    ctx: Context,
    numbers: Sequence[int],
    prompts: list[list[int]],
    *,
    n: int,
    temperature: float | None,
    before: Sequence[int] = (),
) -> list[list[Completion]]:
    """Answers to some prompts, of one turn or, in an environment, of several."""
    rollout = ctx.rollout
    assert rollout is not None
    keys = rollout.keys(ctx.step, numbers, training=ctx.training, before=before)
    policy = ctx.model(trained=sampled_by(ctx))
    if rollout.environment is None:
        return rollout.draw(*policy, prompts, keys, n=n, temperature=temperature)
    rows = [rollout.prompt(number, training=ctx.training).facts() for number in numbers]
    return rollout.converse(*policy, prompts, keys, rows, n=n, temperature=temperature)


def _scores(
    rollout: Rollout,
    numbers: Sequence[int],
    answers: Sequence[Sequence[Completion]],
    training: bool,
) -> Scores:
    """What the rewards say; where a method asks none but monitors, all answers count alike.

    But for those of which the environment failed: they have no reward in any case.
    """
    said = rollout.judge(numbers, answers, training=training)
    if rollout.judged:
        return said
    failed = [one.failed is not None for several in answers for one in several]
    return said._replace(total=np.where(failed, np.nan, 0).astype(np.float32))


def _columns(ctx: Context, groups: Sequence[Group], places: int) -> Columns:
    """The columns of a batch of groups; what is missing has no weight."""
    rollout = ctx.rollout
    assert rollout is not None
    n = rollout.n if ctx.training else 1
    summed = np.array([reward.weight != 0 for reward in rollout.rewards], bool)
    shape = (places, n, rollout.length)
    made = {
        "tokens": np.zeros(shape, np.int32),
        "valid": np.zeros(shape, bool),
        "mask": np.zeros(shape, np.float32),
        "weights": np.zeros(shape[:2], np.float32),
        "sampler_logps": np.zeros(shape, np.float32),
        "rewards": np.zeros(shape[:2], np.float32),
        "reward_parts": np.full((*shape[:2], len(rollout.rewards)), np.nan, np.float32),
        "truncated": np.zeros(shape[:2], np.float32),
    }
    for row, group in enumerate(groups):
        there = np.isfinite(group.total)
        made["weights"][row] = np.where(there, group.weight, 0)
        made["rewards"][row] = np.where(there, group.total, 0)
        made["reward_parts"][row] = np.where(summed, group.each, np.nan)
        for i, answer in enumerate(group.answers):
            put_answer(made, row, i, group.prompt, answer)
            begin = len(group.prompt)
            made["sampler_logps"][row, i, begin : begin + len(answer.logps)] = answer.logps
            made["truncated"][row, i] = answer.finished == "length"
    blocks = Blocks(batch_shards(ctx.mesh), rollout.accumulate)
    once, answer = rollout.prompts_once, rollout.max_tokens
    return made | {"pack": pack_groups(made, blocks, prompts_once=once, answer=answer)}


def _table(ctx: Context, sampled: Sequence[Group], groups: Sequence[Group]) -> None:
    """Tells of all that was sampled; only what is in the batch has a row in it."""
    rollout = ctx.rollout
    assert rollout is not None
    rows = {id(group): row for row, group in enumerate(groups)}
    for group in sampled:
        prompt, row = rollout.prompt(group.example, training=ctx.training), rows.get(id(group))
        ctx.table.extend(_entry(rollout, prompt, group, i, row) for i in range(len(group.answers)))


def _entry(
    rollout: Rollout, prompt: Prompt, group: Group, i: int, row: int | None
) -> dict[str, object]:
    """What the completion table says of an answer."""
    found: dict[str, object] = {
        "example": group.example,
        "where": prompt.where,
        "prompt": prompt.text,
        "completion": group.answers[i].text,
        "tokens": len(group.answers[i].tokens),
        "finished": group.answers[i].finished,
    }
    for name, value in zip(rollout.reward_names, group.each[i].tolist(), strict=True):
        found[f"reward/{name}"] = value
    return found | {"reward": float(group.total[i]), "row": row, "answer": i}


def _say(ctx: Context, groups: Sequence[Group], spent: dict[str, float]) -> None:
    """What is logged of all that was sampled; a figure of nothing is left out."""
    rollout = ctx.rollout
    assert rollout is not None
    if not groups:
        return
    total = np.concatenate([group.total for group in groups])
    each = np.concatenate([group.each for group in groups])
    there = total[np.isfinite(total)]
    tokens = sum(answer.written for group in groups for answer in group.answers)
    ctx.logged.update(told([group.answers for group in groups]))
    ctx.logged["rollout/seconds"] = spent["rollout"]
    ctx.logged["rollout/tokens_per_second"] = tokens / max(spent["rollout"], 1e-9)
    if rollout.environment is not None:
        failed = [one.failed is not None for group in groups for one in group.answers]
        ctx.logged["environment/failed"] = float(np.mean(failed))
    if not rollout.rewards:
        return
    ctx.logged["reward/seconds"] = spent["reward"]
    fails = np.concatenate([group.fails for group in groups]).mean(0).tolist()
    for name, values, failed in zip(rollout.reward_names, each.T, fails, strict=True):
        ctx.logged[f"reward/{name}/failed"] = failed
        if len(known := values[np.isfinite(values)]):
            ctx.logged[f"reward/{name}"] = float(known.mean())
            ctx.logged[f"reward/{name}/std"] = float(known.std())
            ctx.counted[f"reward/{name}"] = len(known)
    if not rollout.judged:
        return
    ctx.logged["rollout/missing"] = 1 - len(there) / len(total)
    ctx.logged["rollout/no_signal"] = float(np.mean([not group.told_apart for group in groups]))
    if len(there):
        ctx.logged["rollout/reward"] = float(there.mean())
        ctx.counted["rollout/reward"] = len(there)
        ctx.logged["rollout/reward_std"] = float(there.std())
    if ctx.training and jax.process_index() == 0:
        _warn(ctx.step + 1, groups, there, compares=rollout.compares)


def _warn(step: int, groups: Sequence[Group], there: np.ndarray, *, compares: bool) -> None:
    """Says where rewards tell no answer from another, as far as the method looks at that."""
    alike = len(there) == 0 or bool((there == there[0]).all())
    if not (alike or (compares and not any(group.told_apart for group in groups))):
        return
    _log.warning(
        "step %d: %s (all %s): %s; easier prompts, a finer reward or more answers a prompt would",
        step,
        "no prompt has answers of different rewards" if compares else "no two rewards differ",
        f"{there[0]:g}" if alike and len(there) else "missing" if alike else "equal in their group",
        "this step teaches nothing" if compares else "rewards teach nothing in this step",
    )


def _tells_apart(*, dynamic_sampling: bool, max_rounds: int) -> bool:
    """Whether groups of equal rewards are left out."""
    if max_rounds < 1:
        raise UserError(f"hparams.max_rounds = {max_rounds}: it must be at least 1")
    if not dynamic_sampling and max_rounds != _ROUNDS:
        raise UserError("hparams.max_rounds is not read where dynamic_sampling = False")
    return dynamic_sampling


rollout = Stage(
    "rollout",
    _rollout,
    writes={
        "tokens": "B N T",
        "valid": "B N T",
        "mask": "B N T",
        "weights": "B N",
        "sampler_logps": "B N T",
        "rewards": "B N",
        "reward_parts": "B N F",
        "truncated": "B N",
    },
    sequences=GROUP,
    judged=True,
    compares=_tells_apart,
    measures=("rollout/reward", "rollout/missing", "rollout/tokens", "rollout/truncated"),
)


def _answers_alone(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Samples answers to each prompt; all stay, since no reward tells them apart."""
    return _rollout(ctx, batch, carry)


answers = dataclasses.replace(
    rollout,
    run=_answers_alone,
    judged=False,
    compares=None,
    measures=("rollout/tokens", "rollout/truncated"),
)
"""Where a teacher judges them, not rewards."""


def _greedy_rewards(ctx: Context, batch: Batch, carry: None) -> tuple[Batch, None]:
    """Adds `greedy_rewards`: of the likeliest answer to each prompt (ReMax, 2310.10505)."""
    host, rollout = ctx.host, ctx.rollout
    assert host is not None and rollout is not None
    asked = {e["row"]: e["example"] for e in ctx.table if e["row"] is not None}
    numbers, column = list(asked.values()), np.full(len(batch["weights"]), np.nan, np.float32)
    prompts = [_prompt_of(host, row).tolist() for row in asked]
    answers = _answers(ctx, numbers, prompts, n=1, temperature=0.0) if asked else []
    # Few may be asked about, and one that no reward is known of is no baseline.
    said = rollout.judge(numbers, answers, training=ctx.training, max_missing=1.0)
    column[list(asked)] = scores = said.total
    if np.isfinite(scores).any():
        ctx.logged["reward/greedy"] = float(np.nanmean(scores))
    return batch | put_batch({"greedy_rewards": column}, ctx.mesh, whole=True), carry


def _prompt_of(host: HostBatch, row: int) -> np.ndarray:
    """The tokens before a group's answers."""
    return host.columns["tokens"][row, 0, : int(host.columns["mask"][row, 0].argmax())]


greedy_rewards = Stage(
    "greedy_rewards",
    _greedy_rewards,
    writes={"greedy_rewards": "B"},
    judged=True,
    wanted=lambda *, baseline: baseline == "greedy",
)
"""Behind `rollout`; NaN where the likeliest answer has no reward."""
