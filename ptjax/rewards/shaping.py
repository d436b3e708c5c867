"""Rewards of a completion's length in tokens."""

import math
from collections.abc import Sequence
from typing import Any

from ptjax.errors import UserError
from ptjax.rewards.base import Failed, Reward
from ptjax.rewards.score import ask


def cosine(
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_tokens: Sequence[int],
    *,
    reward: Reward,
    max_tokens: int,
    correct: Sequence[float] = (2.0, 1.0),
    wrong: Sequence[float] = (-10.0, 0.0),
    exceeded: float = -10.0,
    threshold: float = 0.5,
    **columns: Sequence[Any],
) -> list[float | None | Exception]:
    r"""Correctness shaped by length (2502.03373, equation 1).

    v(L) = v_end + (v_0 - v_end) (1 + cos(π L / L_max)) / 2 for L < L_max tokens, where (v_0, v_end)
    is `correct` for a right answer and `wrong` for another; `exceeded` from L_max on. A right
    answer is worth more the shorter it is, and a wrong one loses less the longer it tries.

    Args:
      prompts: texts.
      completions: texts.
      completion_tokens: tokens of each, its end token too.
      reward: says what is right: a value of at least `threshold`.
      max_tokens: L_max, tokens.
      correct: values at length 0 and at L_max.
      wrong: the same of a wrong answer.
      exceeded: the value of an answer that ran out of room.
      threshold: of what `reward` says.
      **columns: the row's other columns, for `reward`.

    Returns:
      Values; what `reward` abstains or fails on is so here.

    Raises:
      UserError: a length that is none; two values are expected.
    """
    _above_0("cosine", "max_tokens", max_tokens)
    for name, ends in (("correct", correct), ("wrong", wrong)):
        if isinstance(ends, str) or len(ends) != 2:
            raise UserError(f"reward cosine: {name} = {ends!r}; two values, at 0 and at max_tokens")
    columns = {**columns, "completion_tokens": completion_tokens}
    found: list[float | None | Exception] = []
    for said, tokens in zip(
        ask([reward], prompts, completions, columns)[0], completion_tokens, strict=True
    ):
        if said is None or isinstance(said, str):
            found.append(None if said is None else Failed(f"{reward.name}: {said}"))
        elif tokens >= max_tokens:
            found.append(exceeded)
        else:
            start, end = correct if said >= threshold else wrong
            found.append(end + (start - end) * (1 + math.cos(math.pi * tokens / max_tokens)) / 2)
    return found


def soft_overlong(
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_tokens: Sequence[int],
    *,
    max_tokens: int,
    cache: int,
) -> list[float]:
    """From 0 down to -1 over the last tokens of the room (DAPO, 2503.14476, equation 13).

    0 for |y| <= L_max - L_cache; (L_max - L_cache - |y|) / L_cache up to L_max; -1 beyond.

    Args:
      prompts: not read.
      completions: not read.
      completion_tokens: |y|, tokens of each completion, its end token too.
      max_tokens: L_max.
      cache: L_cache, tokens from 1 to L_max.

    Returns:
      From -1 to 0.

    Raises:
      UserError: lengths that are none, or a cache above `max_tokens`.
    """
    _above_0("soft_overlong", "max_tokens", max_tokens)
    _above_0("soft_overlong", "cache", cache)
    if cache > max_tokens:
        raise UserError(f"reward soft_overlong: cache={cache} is above max_tokens={max_tokens}")
    start = max_tokens - cache
    return [-min(max(tokens - start, 0), cache) / cache for tokens in completion_tokens]


def _above_0(reward: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"reward {reward}: {name} = {value!r}; it must be a whole number above 0")
