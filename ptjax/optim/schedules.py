"""Learning rates from optax, by name."""

from collections.abc import Callable
from typing import Any

import optax

from ptjax.errors import UserError, did_you_mean

Schedule = Callable[[Any], Any]
SCHEDULES = ("constant", "linear", "cosine", "wsd")


def make_schedule(
    *,
    learning_rate: float,
    steps: int,
    schedule: str = "cosine",
    warmup: float | int = 0.0,
    final: float = 0.0,
    decay: float = 0.2,
) -> Schedule:
    """The learning rate at each accepted optimizer step.

    Args:
      learning_rate: the peak.
      steps: optimizer steps of the whole run.
      schedule: after the warmup: `constant`; `linear` or `cosine` down to `final`; `wsd`
        (2404.06395): constant, then linear down to `final` over the last `decay` of the run.
      warmup: linear warmup from 0: a number of steps, or below 1 a fraction of the run.
      final: the last learning rate as a fraction of the peak.
      decay: the part of the run in which `wsd` goes down.
    """
    if schedule not in SCHEDULES:
        raise UserError(
            f"config.optim.schedule: unknown {schedule!r}{did_you_mean(schedule, SCHEDULES)}"
        )
    rise = round(warmup * steps) if warmup < 1 else round(warmup)
    if rise >= steps and rise > 0:
        raise UserError(
            f"config.optim.warmup: {rise} warmup steps leave nothing of a run of {steps} steps"
        )
    rest, end = max(steps - rise, 1), final * learning_rate
    if schedule == "constant":
        body = optax.constant_schedule(learning_rate)
    elif schedule == "linear":
        body = optax.linear_schedule(learning_rate, end, rest)
    elif schedule == "cosine":
        body = optax.cosine_decay_schedule(learning_rate, rest, alpha=final)
    else:
        fall = min(max(round(decay * steps), 1), rest)
        body = optax.linear_schedule(learning_rate, end, fall, transition_begin=rest - fall)
    if not rise:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, rise), body], [rise])
