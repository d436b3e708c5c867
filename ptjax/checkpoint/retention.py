"""Which steps may go once a newer one has verified."""

from collections.abc import Mapping
from math import isnan

from ptjax.errors import UserError


def check(keep: int, keep_best: tuple[str, str] | None) -> None:
    """Raises UserError where the two settings of `surplus` make no sense."""
    if keep < 2:
        raise UserError(
            f"config.checkpoint.keep = {keep}: at least 2 steps are kept, so that one can go bad"
        )
    if keep_best is not None and keep_best[1] not in ("min", "max"):
        raise UserError(f"checkpoint keep_best: {keep_best[1]!r} is neither 'min' nor 'max'")


def surplus(
    steps: Mapping[int, Mapping[str, float]], *, keep: int, keep_best: tuple[str, str] | None
) -> list[int]:
    """Returns the steps to delete, oldest first: all but the newest `keep` and the best one.

    Args:
      steps: sound steps, each with its metrics; one without the metric, or with NaN, is never best.
      keep: how many of the newest stay; at least 2.
      keep_best: name of a metric and "min" or "max"; ties go to the newer step.

    """
    stay = set(sorted(steps)[-keep:])
    if keep_best is not None:
        metric, direction = keep_best
        sign = 1 if direction == "max" else -1
        rated = [
            (sign * values[metric], step)
            for step, values in steps.items()
            if metric in values and not isnan(values[metric])
        ]
        stay |= {max(rated)[1]} if rated else set()
    return sorted(set(steps) - stay)
