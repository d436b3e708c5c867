"""How long a program takes at least: a model of four limits, no measurement."""

from typing import NamedTuple

from ptjax.plan.compiled import Compiled
from ptjax.plan.topology import Chip


class Roofline(NamedTuple):
    """Seconds that a program needs at least, by what limits it; None where a rate is not known.

    Attributes:
      compute: its flops, those of recomputation included, at the chip's peak.
      memory: every argument read once, every result written once but what stays as it is, what is
        received written and read; activations are left out.
      links: what is sent within a slice, over all links of a chip at once.
      slices: what is sent between slices.
    """

    compute: float | None
    memory: float | None
    links: float | None
    slices: float | None

    @property
    def bound(self) -> str | None:
        """The longest of them."""
        known = {name: value for name, value in self._asdict().items() if value is not None}
        return max(known, key=lambda name: known[name]) if known else None


def roofline(one: Compiled, chip: Chip, devices: int) -> Roofline:
    """The limits of a program.

    Args:
      one: compiled.
      chip: what a device can do.
      devices: over which the flops are spread.
    """
    planned = one.planned
    near = sum(each.sent for each in one.traffic if not each.between_slices)
    far = sum(each.sent for each in one.traffic if each.between_slices)
    moved = None
    if one.memory is not None:
        moved = one.memory.arguments + one.memory.results - one.stays + 2 * (near + far)
    refused = one.memory is None
    return Roofline(
        compute=_seconds((planned.flops + planned.again) / devices, chip.flops),
        memory=_seconds(moved, chip.memory_rate),
        links=None if refused else _seconds(near, chip.link_rate),
        slices=None if refused else _seconds(far, chip.slice_rate),
    )


def _seconds(amount: int | float | None, rate: float | None) -> float | None:
    return None if amount is None or rate is None else amount / rate
