"""From the steps of an epoch to the steps of a run."""

import bisect
import hashlib
import itertools
import sys
from collections.abc import Callable

from ptjax.data.order import Mixture
from ptjax.data.plan import Plan, Step


class Schedule:
    """All steps of a run by number, for Grain to read in any order.

    Args:
      mixture: what each epoch holds.
      make_plan: plans an epoch of so many examples of each source.
      identity: bytes that differ whenever the order of examples may differ.

    """

    def __init__(
        self, mixture: Mixture, make_plan: Callable[[tuple[int, ...]], Plan], identity: bytes = b""
    ):
        self._plans: list[Plan] = []
        self._firsts = [0]
        self.epoch_steps: list[int] = []
        """Steps of the epochs that differ from the last; it repeats where the run has no end."""
        made: dict[tuple[int, ...], Plan] = {}
        endless = any(
            epochs is None and size
            for epochs, size in zip(mixture.epochs, mixture.sizes, strict=True)
        )
        for epoch in itertools.count():
            counts = mixture.counts(epoch)
            if not any(counts):
                break
            plan = made.setdefault(counts, made.get(counts) or make_plan(counts))
            self._plans.append(plan)
            self.epoch_steps.append(plan.steps)
            self._firsts.append(self._firsts[-1] + plan.steps)
            if endless and all(
                n == (0 if epochs is not None else share)
                for n, epochs, share in zip(counts, mixture.epochs, mixture.shares(), strict=True)
            ):
                break
        self.steps: int | None = None if endless else self._firsts[-1]
        """Steps of the run; None: no end."""
        self.block = max(plan.block for plan in self._plans)
        """Places of every (shard, micro-batch) block."""
        self.shapes = sorted({shape for plan in self._plans for shape in plan.shapes})
        """(rows of a block, length) of every step that can occur."""
        self.identity = hashlib.sha256(identity + repr(self.epoch_steps).encode()).hexdigest()[:16]
        """Alike for runs that see the same examples in the same order."""

    def __len__(self) -> int:
        return sys.maxsize if self.steps is None else self.steps

    def __getitem__(self, index: int) -> Step:
        """The run's step of this number."""
        epoch, step = self.locate(index)
        plan = self._plans[min(epoch, len(self._plans) - 1)]
        return plan.step(epoch, step, self.block)

    def locate(self, number: int) -> tuple[int, int]:
        """Epoch and step within it."""
        if number >= self._firsts[-1]:
            beyond, index = divmod(number - self._firsts[-1], self._plans[-1].steps)
            return len(self._plans) + beyond, index
        epoch = bisect.bisect_right(self._firsts, number) - 1
        return epoch, number - self._firsts[epoch]

    @property
    def efficiency(self) -> float:
        """Share of the first epoch's places that hold a token."""
        return self._plans[0].efficiency
