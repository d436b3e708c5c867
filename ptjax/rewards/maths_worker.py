"""math-verify's opinion of an answer, asked in a worker: its own time limits may hang with it."""

from collections.abc import Sequence
from typing import Any

import math_verify

_MARKS = ("\\boxed", "$", "\\(", "\\[")


def verdict(golds: Sequence[str], said: str) -> float | None:
    """Whether an answer is one of those that are right.

    Args:
      golds: answers of which any is right.
      said: the completion's.

    Returns:
      1 or 0; None where it is not 1 and none of the right answers can be read.
    """
    right, answer = [_parsed(gold) for gold in golds], _parsed(said)
    if any(math_verify.verify(one, answer, timeout_seconds=0) for one in right):
        return 1.0
    # What it cannot read it hands back as text alone.
    return 0.0 if any(not isinstance(part, str) for one in right for part in one) else None


def _parsed(text: str) -> list[Any]:
    """As a formula where a text has no marks of one, else, or where it is none, as a sentence."""
    marked = any(mark in text for mark in _MARKS)
    found = [] if marked else math_verify.parse(f"${text}$", parsing_timeout=0)
    return found or math_verify.parse(text, parsing_timeout=0)
