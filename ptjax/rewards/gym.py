"""The tasks of reasoning-gym, each scored by its own code.

`python -m ptjax.rewards.tasks` makes rows of them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ptjax.errors import UserError
from ptjax.rewards.base import Failed, needs
from ptjax.rewards.worker import pool


def reasoning_gym(
    prompts: Sequence[str],
    completions: Sequence[str],
    task: Sequence[str | None],
    entry: Sequence[Any],
    *,
    tag: str | None = "answer",
    raising: float | None = None,
    seconds: float = 10.0,
    workers: int = 1,
) -> list[float | None | Exception]:
    """What the row's task of reasoning-gym says of the answer, from 0 to 1 (2505.24760).

    The task's code runs in a process that is killed when it takes too long, and in it nothing that
    the completion says is evaluated as Python: see `ptjax.rewards.gym_worker`.

    Args:
      prompts: not read.
      completions: texts.
      task: its name in reasoning-gym.
      entry: what reasoning-gym made: question, answer and metadata; JSON of
        `ptjax.rewards.tasks`, or a dict.
      tag: the answer is what stands in the last `<tag></tag>`, and a completion without one has 0;
        None: it is the whole completion.
      raising: the value of an answer that the task's code raises on while it takes the entry's own;
        None: it is missing.
      seconds: that a completion may take.
      workers: processes.

    Returns:
      Values; None for a row without a task; a failure where there is no verdict.

    Raises:
      UserError: reasoning-gym is not installed.
    """
    ready()
    found: list[float | None | Exception] = []
    calls: list[tuple[int, list[Any]]] = []
    for i, text in enumerate(completions):
        said = text.strip() if tag is None else inside(text, tag)
        found.append(None if task[i] is None else 0.0)
        if task[i] is not None and said is not None:
            given = entry[i]
            calls.append(
                (i, [task[i], given if isinstance(given, str) else json.dumps(given), said])
            )
    judge = pool("ptjax.rewards.gym_worker.verdict", seconds, workers)
    for (i, _), value in zip(calls, judge.map([call for _, call in calls]), strict=True):
        if isinstance(value, Mapping):
            found[i] = Failed(value["raised"]) if raising is None else raising
        else:
            found[i] = value
    return found


def ready(**_: Any) -> None:
    """Refuses before a run what it could not be judged with."""
    needs("reasoning-gym", "reasoning_gym", "reward reasoning_gym")


def inside(text: str, tag: str) -> str | None:
    """What stands in the last `<tag></tag>` of a text.

    Raises:
      UserError: the tag has no name.
    """
    if not tag:
        raise UserError("reward reasoning_gym: tag = ''; a name or None is expected")
    start, end = text.rfind(f"<{tag}>"), text.rfind(f"</{tag}>")
    return text[start + len(tag) + 2 : end].strip() if 0 <= start < end else None
