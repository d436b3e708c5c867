"""Which two answers make a pair."""

from collections.abc import Sequence

import numpy as np

AGAINST = ("worst", "random")


def best_against(
    answers: Sequence[str],
    scores: Sequence[float],
    *,
    against: str,
    margin: float,
    draw: np.random.Generator,
) -> tuple[int, int] | str:
    """The best answer against the worst, or against one of the others at random.

    Args:
      answers: texts; one that comes twice counts once.
      scores: one an answer; NaN: it is not chosen from.
      against: "worst" or "random".
      margin: how much better the best must be; it must be better in any case.
      draw: takes the random one.

    Returns:
      The indices of the chosen and the rejected answer, or why there is no pair.
    """
    different = {answers[i]: i for i in reversed(range(len(answers))) if scores[i] == scores[i]}
    pool = sorted(different.values(), key=lambda i: (-scores[i], i))
    if not pool:
        return "no answer with a score"
    if len(pool) < 2:
        return "one answer only"
    other = pool[-1] if against == "worst" else pool[1 + int(draw.integers(len(pool) - 1))]
    gap = scores[pool[0]] - scores[other]
    return (pool[0], other) if enough(gap, margin) else "below the margin"


def enough(gap: float, margin: float) -> bool:
    """Whether one side is better, and by at least the margin."""
    return gap > 0 and gap >= margin
