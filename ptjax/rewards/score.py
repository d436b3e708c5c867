"""Several rewards to one number a completion; what has no number is missing, and never 0."""

import asyncio
import inspect
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ptjax.errors import UserError
from ptjax.rewards.base import Reward

MAX_MISSING = 0.5
"""Share of completions that may fail to be scored."""


class Scores(NamedTuple):
    """What rewards say of some completions."""

    total: np.ndarray
    """float32 [count]: the weighted sum; NaN where a reward failed or all abstained."""
    each: np.ndarray
    """float32 [count, rewards], before weights; NaN where a reward failed or abstained."""
    failed: Counter[str]
    """Why values are missing, with the number of completions; abstentions are not among them."""


def score(
    rewards: Sequence[Reward],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    max_missing: float = MAX_MISSING,
) -> Scores:
    """Scores completions: Σ weight · value over the rewards that do not abstain.

    A reward that raises, or returns something else than a list of `count` finite numbers and Nones,
    fails: those completions have no score, since a sum without it does not compare with the others.
    Asynchronous rewards are awaited together.

    Args:
      rewards: from `ptjax.rewards.base.rewards`.
      prompts: texts, one a completion.
      completions: texts.
      columns: the rows' other columns, one value a completion.
      max_missing: the share of completions that may fail.

    Raises:
      UserError: more of them fail; a column that a reward needs is not there.
    """
    count = len(completions)
    each = np.full((count, len(rewards)), np.nan, np.float32)
    bad = np.zeros(count, bool)
    failed: Counter[str] = Counter()
    answers = _ask(rewards, prompts, completions, columns) if count else []
    for j, (reward, answer) in enumerate(zip(rewards, answers, strict=count > 0)):
        for i, value in enumerate(_values(answer, count)):
            if isinstance(value, str):
                failed[f"{reward.name}: {value}"] += 1
                bad[i] = True
            elif value is not None:
                each[i, j] = value
    if bad.sum() > max_missing * count:
        raise UserError(
            f"rewards: {bad.sum()} of {count} completions have no score (at most "
            f"{max_missing:.0%} may have none): "
            + ", ".join(f"{times} x {reason}" for reason, times in failed.most_common(3))
        )
    weights = np.array([reward.weight for reward in rewards], np.float32)
    given = np.isfinite(each)
    total = np.where(given, each, 0) @ weights
    total = np.where(bad | ~given.any(axis=1), np.float32(np.nan), total)
    return Scores(total, each, failed)


def _ask(
    rewards: Sequence[Reward],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[Any]:
    """What each reward returns, or the exception that it raises."""
    answers: list[Any] = []
    for reward in rewards:
        try:
            answers.append(reward(prompts, completions, columns))
        except Exception as error:
            answers.append(error)
    waiting = [i for i, answer in enumerate(answers) if inspect.isawaitable(answer)]
    if waiting:
        for i, answer in zip(waiting, _wait([answers[i] for i in waiting]), strict=True):
            answers[i] = answer
    for answer in answers:
        if isinstance(answer, UserError):
            raise answer
    return answers


def _wait(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """Awaits all together, in a thread of its own: a notebook's has a loop that runs already."""
    found: list[Any] = []

    async def gather() -> list[Any]:
        return await asyncio.gather(*awaitables, return_exceptions=True)

    thread = threading.Thread(target=lambda: found.extend(asyncio.run(gather())))
    thread.start()
    thread.join()
    return found


def _values(answer: Any, count: int) -> list[float | str | None]:
    """For each completion a number, None for an abstention, or a text that says what is wrong."""
    if isinstance(answer, BaseException):
        text = " ".join(str(answer).split())[:120]
        return [f"{type(answer).__name__}: {text}" if text else type(answer).__name__] * count
    try:
        values = list(answer)
    except TypeError:
        return [f"returned {type(answer).__name__}, not a list"] * count
    if len(values) != count:
        return ["returned a list of another length"] * count
    return [_value(value) for value in values]


def _value(value: Any) -> float | str | None:
    if value is None:
        return None
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        return f"returned {type(value).__name__}, not a number"
    return number if math.isfinite(number) else "returned NaN or infinity"
