"""Several rewards to one number a completion; what has no number is missing, and never 0."""

import asyncio
import inspect
import math
import queue
import threading
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ptjax.errors import UserError
from ptjax.rewards.base import Failed, Reward

MAX_MISSING = 0.5
"""Share of completions that may fail to be scored."""

_GRACE = 1.0
"""Seconds beyond the limit that asynchronous rewards get to be cancelled."""


class Scores(NamedTuple):
    """What rewards say of some completions."""

    total: np.ndarray
    """float32 [count]: the weighted sum; NaN where a reward failed or all abstained."""
    each: np.ndarray
    """float32 [count, rewards], before weights; NaN where a reward failed or abstained."""
    failed: Counter[str]
    """Why values are missing, with the number of completions; abstentions are not among them."""
    fails: np.ndarray
    """bool [count, rewards]: where a reward failed."""


def score(
    rewards: Sequence[Reward],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    missing: Sequence[str | None] = (),
    max_missing: float = MAX_MISSING,
) -> Scores:
    """Asks the rewards about completions, and sums up what they say; see `summed`.

    A reward fails where it raises, takes longer than its time limit, or returns something else than
    a list of `count` finite numbers and Nones: those completions have no score, since a sum without
    it does not compare with the others. Asynchronous rewards are awaited together.

    Args:
      rewards: from `ptjax.rewards.base.rewards`.
      prompts: texts, one a completion.
      completions: texts.
      columns: the rows' other columns, one value a completion.
      missing: why completions have no score whatever rewards say, which are not asked about them;
        None for those that may have one; empty where all may.
      max_missing: the share of completions that may fail.

    Raises:
      UserError: more of them fail; a column that a reward needs is not there.
    """
    missing = missing or [None] * len(completions)
    said = ask(rewards, prompts, completions, columns, missing=missing)
    return summed(rewards, said, missing, max_missing=max_missing)


def summed(
    rewards: Sequence[Reward],
    said: Sequence[Sequence[float | str | None]],
    missing: Sequence[str | None],
    *,
    max_missing: float = MAX_MISSING,
) -> Scores:
    """Σ weight · value over the rewards that do not abstain.

    A reward of weight 0 is a monitor: it has its values, and neither gives nor takes a score.

    Args:
      rewards: from `ptjax.rewards.base.rewards`.
      said: by reward, what it says of each completion: from `ask`.
      missing: by completion, why it has no score whatever rewards say; None where it may have one.
      max_missing: the share of completions that may fail.

    Raises:
      UserError: more of them fail.
    """
    count = len(missing)
    each = np.full((count, len(rewards)), np.nan, np.float32)
    fails = np.zeros((count, len(rewards)), bool)
    failed: Counter[str] = Counter()
    lost = np.array([why is not None for why in missing], bool)
    failed.update(why for why in missing if why is not None)
    for j, reward in enumerate(rewards):
        for i, value in enumerate(said[j]):
            if isinstance(value, str):
                failed[f"{reward.name}: {value}"] += 1
                fails[i, j] = True
            elif value is not None:
                each[i, j] = value
    weights = np.array([reward.weight for reward in rewards], np.float32)
    bad = lost | (fails & (weights != 0)).any(axis=1)
    if bad.sum() > max_missing * count:
        raise UserError(
            f"rewards: {bad.sum()} of {count} completions have no score (at most "
            f"{max_missing:.0%} may have none): "
            + ", ".join(f"{times} x {reason}" for reason, times in failed.most_common(3))
        )
    given = np.isfinite(each) & (weights != 0)
    total = (np.where(given, each, 0) * weights).sum(1)  # a product of matrices sums rows unlike
    total = np.where(bad | ~given.any(axis=1), np.float32(np.nan), total)
    return Scores(total, each, failed, fails)


def ask(
    rewards: Sequence[Reward],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    missing: Sequence[str | None] = (),
) -> list[list[float | str | None]]:
    """What each reward says of each completion, before weights.

    Args:
      rewards: from `ptjax.rewards.base.rewards`.
      prompts: texts, one a completion.
      completions: texts.
      columns: the rows' other columns, one value a completion.
      missing: as `score` has them.

    Returns:
      By reward and completion a finite number, None for an abstention and for what rewards were not
      asked about, or a text that says why the value is missing.

    Raises:
      UserError: a reward raises one; a column that it needs is not there.
    """
    if any(why is not None for why in missing):
        asked = [i for i, why in enumerate(missing) if why is None]
        said = ask(
            rewards,
            [prompts[i] for i in asked],
            [completions[i] for i in asked],
            {name: [column[i] for i in asked] for name, column in columns.items()},
        )
        found = [dict(zip(asked, values, strict=True)) for values in said]
        return [[values.get(i) for i in range(len(completions))] for values in found]
    if not completions:
        return [[] for _ in rewards]
    answers = [_call(reward, prompts, completions, columns) for reward in rewards]
    waiting = [i for i, answer in enumerate(answers) if inspect.isawaitable(answer)]
    if waiting:
        limits = [rewards[i].time_limit for i in waiting]
        for i, answer in zip(waiting, _wait([answers[i] for i in waiting], limits), strict=True):
            answers[i] = answer
    for answer in answers:
        if isinstance(answer, UserError):
            raise answer
    return [_values(answer, len(completions)) for answer in answers]


def _call(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> Any:
    """What a reward returns, or what it raises; one that hangs is left behind in its thread."""
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            said.put(reward(prompts, completions, columns))
        except (Exception, SystemExit) as error:
            said.put(error)

    if reward.time_limit is None:
        run()
    else:
        threading.Thread(target=run, daemon=True, name=f"reward {reward.name}").start()
    try:
        return said.get(timeout=reward.time_limit)
    except queue.Empty:
        return _too_long(reward.time_limit)


def _wait(awaitables: list[Awaitable[Any]], limits: list[float | None]) -> list[Any]:
    """Awaits all together, in a thread of its own: a notebook's has a loop that runs already."""
    found: list[Any] = [_too_long(limit) for limit in limits]

    async def one(i: int) -> None:
        try:
            found[i] = await asyncio.wait_for(awaitables[i], limits[i])
        except TimeoutError as error:
            found[i] = error if str(error) else found[i]
        except (Exception, SystemExit) as error:
            found[i] = error

    async def together() -> None:
        await asyncio.gather(*(one(i) for i in range(len(awaitables))))

    thread = threading.Thread(target=lambda: asyncio.run(together()), daemon=True)
    thread.start()
    known = [limit for limit in limits if limit is not None]
    # One that blocks its loop keeps `wait_for` from ending it.
    thread.join(max(known) + _GRACE if len(known) == len(limits) else None)
    return list(found)


def _too_long(limit: float | None) -> TimeoutError:
    return TimeoutError("no answer" if limit is None else f"no answer in {limit:g} s")


def _values(answer: Any, count: int) -> list[float | str | None]:
    """For each completion a number, None for an abstention, or a text that says what is wrong."""
    if isinstance(answer, BaseException):
        return [reason(answer)] * count
    try:
        values = list(answer)
    except TypeError:
        return [f"returned {type(answer).__name__}, not a list"] * count
    if len(values) != count:
        return ["returned a list of another length"] * count
    return [_value(value) for value in values]


def reason(error: BaseException) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split())[:120]
    if text and isinstance(error, Failed):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _value(value: Any) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, BaseException):
        return reason(value)
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        return f"returned {type(value).__name__}, not a number"
    return number if math.isfinite(number) else "returned NaN or infinity"
