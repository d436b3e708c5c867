"""Rows of reasoning-gym's tasks, for training and held out; `python -m ptjax.rewards.tasks`."""

import json
from collections.abc import Iterator
from typing import Any

from ptjax.errors import UserError, check_keys, did_you_mean
from ptjax.rewards.base import needs
from ptjax.rewards.gym_entries import packed

SUFFIX = "\n\nEnd with the answer alone between <answer> and </answer>."
_TRIES = 4
"""Items that are made for each that is wanted, at most; a small task repeats itself."""


def rows(
    task: str, count: int, *, seed: int, settings: dict[str, Any], suffix: str = SUFFIX
) -> list[dict[str, str]]:
    """Rows of a task, no question twice.

    Args:
      task: its name in reasoning-gym.
      count: rows.
      seed: of its generator.
      settings: its own.
      suffix: what is added to each question.

    Returns:
      `prompt`, `answer`, `task`, `entry` (JSON, for the reward) and `scorer` (for `by_row`).

    Raises:
      UserError: no such task or setting; it has fewer different questions; reasoning-gym is not
        installed.
    """
    if count < 1:
        raise UserError(f"task {task}: {count} rows; at least 1 is expected")
    found: dict[str, dict[str, str]] = {}
    for entry in _entries(task, count * _TRIES, seed, settings):
        text = json.dumps(packed(entry))
        answer = "" if entry["answer"] is None else str(entry["answer"])
        row = {"prompt": entry["question"] + suffix, "answer": answer}
        found.setdefault(
            row["prompt"], {**row, "task": task, "entry": text, "scorer": "reasoning_gym"}
        )
        if len(found) == count:
            break
    else:
        raise UserError(
            f"task {task}: {len(found)} different questions in {count * _TRIES} tries, "
            f"{count} are asked for; ask for fewer, or set what makes it larger"
        )
    return list(found.values())


def _entries(task: str, size: int, seed: int, settings: dict[str, Any]) -> Iterator[Any]:
    needs("reasoning-gym", "reasoning_gym", f"task {task}")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        raise UserError(f"no task {task!r} in reasoning-gym{did_you_mean(task, DATASETS)}")
    known = set(DATASETS[task][1].__dataclass_fields__) - {"seed", "size"}
    check_keys(settings, known, f"task {task}")
    try:
        made = reasoning_gym.create_dataset(task, seed=seed, size=size, **settings)
    except (AssertionError, ValueError, TypeError) as error:
        raise UserError(f"task {task}: {settings}: {error}") from error
    return (made[i] for i in range(size))
