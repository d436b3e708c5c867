"""What a judge of steps could learn without reading them: how many are good, where mistakes are."""

import dataclasses

import numpy as np

from ptjax.data.examples import Examples
from ptjax.data.shortcuts import wilson
from ptjax.hosts import exchange


@dataclasses.dataclass(frozen=True)
class StepLabels:
    """Labels of solutions in steps; a step is good where its label is above one half."""

    rows: int
    steps: int
    good: int
    """Good steps."""
    mistaken: int
    """Rows with a bad step."""
    last: int
    """Of those, the rows whose first bad step is their last step."""

    def lines(self) -> list[str]:
        """For a person."""
        share, a_row = self.good / max(1, self.steps), self.steps / max(1, self.rows)
        told = f"{share:.1%} of {self.steps} steps are good, {a_row:.1f} steps a row; "
        if not self.mistaken:
            return [told + "no row has a bad one"]
        last, low, high = wilson(self.last, self.mistaken)
        where = f"in {last:.1%} ({low:.1%} to {high:.1%})"
        return [told + f"of {self.mistaken} rows with a bad one the first is the last step {where}"]


def step_labels(examples: Examples) -> StepLabels:
    """Counts the labels of what is trained on, as far as rows were not cut.

    Args:
      examples: of kind "stepwise".

    """
    counts = np.zeros(4, np.int64)
    for number, one in enumerate(examples.encodings):
        sequences = one.sequences
        mine = (examples.source == number) & sequences.mine(examples.row)
        begin = examples.pieces.starts[mine, 0] - sequences.flat.begin
        length = examples.lengths[mine, 0]
        places = np.flatnonzero(sequences.own("mask"))
        good = sequences.own("labels")[places] > 0.5
        first, end = (np.searchsorted(places, at) for at in (begin + 1, begin + length))
        before = np.append(0, np.cumsum(good))
        bad = np.append(np.flatnonzero(~good), len(good))
        mistake = bad[np.searchsorted(bad, first)]
        found = mistake < end
        counts += [
            np.sum(end - first),
            np.sum(before[end] - before[first]),
            np.sum(found),
            np.sum(found & (mistake == end - 1)),
        ]
    counts = exchange.gathered(counts[None]).sum(0)
    return StepLabels(len(examples), *counts.tolist())
