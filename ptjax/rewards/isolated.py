"""Any other reward in a process of its own, which may hang or die without the run."""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ptjax.errors import UserError
from ptjax.rewards import base
from ptjax.rewards.score import ask
from ptjax.rewards.worker import pool


def isolated(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    reward: base.Reward,
    seconds: float = 10.0,
    workers: int = 1,
    **columns: Sequence[Any],
) -> list[float | None | Exception]:
    """What another reward says, asked about one completion at a time in a process that is killed.

    For code that may hang, crash or eat memory. The process sees no environment variables but a few
    (the path, the home folder), may write no files, and has 4 GiB of address space.

    Args:
      prompts: texts.
      completions: texts.
      reward: a row of `REWARDS` or a dotted path, with settings that JSON can hold.
      seconds: that one completion may take.
      workers: processes.
      **columns: the row's other columns, as JSON holds them.

    Returns:
      Its values; a failure for each completion on which it raised, took too long or died.

    Raises:
      UserError: settings that JSON cannot hold, or another limit than `seconds`.
    """
    if reward.time_limit != base.TIME_LIMIT:
        raise UserError(f"reward isolated: {reward.name}: set 'seconds', not its time_limit")
    passed = base.accepted(reward.function, columns, f"reward {reward.name}")
    calls = [
        [reward.name, reward.settings, prompts[i], text, {k: v[i] for k, v in passed.items()}]
        for i, text in enumerate(completions)
    ]
    try:
        json.dumps(calls)
    except (TypeError, ValueError) as error:
        raise UserError(f"reward isolated: {reward.name}: {error}") from error
    return pool("ptjax.rewards.isolated.value", seconds, workers).map(calls)


def value(
    name: str, settings: Mapping[str, Any], prompt: str, completion: str, row: Mapping[str, Any]
) -> float | None:
    """The reward of one completion; runs in a worker.

    Raises:
      Failed: what the reward raised or returned.
    """
    one = _reward(name, json.dumps(settings))
    columns = {key: [given] for key, given in row.items()}
    said = ask([one], [prompt], [completion], columns)[0][0]
    if isinstance(said, str):
        raise base.Failed(said)
    return said


@functools.cache
def _reward(name: str, settings: str) -> base.Reward:
    return base.reward({**json.loads(settings), "name": name, "time_limit": None})
