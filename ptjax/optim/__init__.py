"""Optimizers and their schedules; what saves their memory: fewer bits of state, rounded updates."""

from ptjax.optim.optimizers import (
    FACTORED,
    OPTIMIZERS,
    make_optimizer,
    matrix_shape,
    muon_axes,
    state_shardings,
)
from ptjax.optim.schedules import SCHEDULES, Schedule, make_schedule

__all__ = [
    "FACTORED",
    "OPTIMIZERS",
    "SCHEDULES",
    "Schedule",
    "make_optimizer",
    "make_schedule",
    "matrix_shape",
    "muon_axes",
    "state_shardings",
]
