"""What a pipeline found: counts, drops, truncation, packing."""

import collections
import dataclasses
from typing import Any

import numpy as np

from ptjax.data.examples import Examples, SourceReport
from ptjax.data.planning import Layout
from ptjax.data.schedule import Schedule
from ptjax.data.shortcuts import Shortcuts
from ptjax.data.steps import StepLabels


@dataclasses.dataclass
class Report:
    """Numbers of the whole pipeline, and of each source."""

    sources: list[SourceReport]
    validation_sources: list[SourceReport]
    examples: int
    """Trained on."""
    held_out: int
    tokens: int
    trained_tokens: int
    truncated: int
    truncated_tokens: int
    drops: dict[str, int]
    """Reason -> rows or sequences left out, over all sources."""
    efficiency: float
    """Share of the batches' places that hold a token."""
    lengths: np.ndarray
    """Tokens of every sequence."""
    rows_per_step: int | None
    examples_per_block: int
    steps_per_epoch: int
    shortcuts: Shortcuts | StepLabels | None = None
    """What judgements could be told by without reading; None where nothing is judged."""

    @classmethod
    def of(
        cls,
        sources: list[SourceReport],
        validation_sources: list[SourceReport],
        examples: Examples,
        held_out: Examples | None,
        layout: Layout,
        schedule: Schedule,
        found: Shortcuts | StepLabels | None = None,
    ) -> "Report":
        """Adds up the sources."""
        drops: collections.Counter[str] = collections.Counter()
        for source in sources:
            drops.update(source.drops)
        return cls(
            sources=sources,
            validation_sources=validation_sources,
            examples=len(examples),
            held_out=len(held_out) if held_out is not None else 0,
            tokens=int(examples.lengths.sum()),
            trained_tokens=int(examples.trained.sum()),
            truncated=sum(source.truncated for source in sources),
            truncated_tokens=sum(source.truncated_tokens for source in sources),
            drops=dict(drops),
            efficiency=schedule.efficiency,
            lengths=examples.lengths[examples.lengths > 0],
            rows_per_step=layout.rows,
            examples_per_block=schedule.block,
            steps_per_epoch=schedule.epoch_steps[0],
            shortcuts=found,
        )

    def lost(self) -> str:
        """What of the data was cut or left out, in words; empty where nothing was."""
        told = []
        for what, sources in (("", self.sources), (" held out", self.validation_sources)):
            cut = sum(source.truncated for source in sources)
            tokens = sum(source.truncated_tokens for source in sources)
            if cut:
                told.append(f"{cut:,} sequences{what} cut by {tokens:,} tokens")
            drops: collections.Counter[str] = collections.Counter()
            for source in sources:
                drops.update(source.drops)
            told += [f"{n:,}{what} left out: {reason}" for reason, n in drops.items() if n]
        return "; ".join(told)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, lengths as quantiles."""
        values = dataclasses.asdict(self)
        quantiles = np.quantile(self.lengths, [0, 0.25, 0.5, 0.75, 0.95, 1]).astype(int)
        values["lengths"] = dict(
            zip(("min", "25%", "50%", "75%", "95%", "max"), quantiles.tolist(), strict=True)
        )
        return values
