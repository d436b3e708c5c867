"""What a step costs, counted from the model's table and the batch's true lengths."""

import resource
import sys
from typing import NamedTuple

import jax
import numpy as np

from ptjax.data import HostBatch
from ptjax.job import Run
from ptjax.metrics import forward_flops, train_flops
from ptjax.models.families import CRITIC
from ptjax.models.flax_adapter import FlaxModel
from ptjax.models.spec import Table
from ptjax.ops.logprobs import FIELDS


class Work(NamedTuple):
    """What a step computes.

    Attributes:
      flops: the model's, of the loss and of the stages that ran.
      filled: places of its rows that hold a token.
      slots: all places, with padding.
    """

    flops: float
    filled: int
    slots: int


class FlopCounter:
    """Model flops of this run's batches: weights by kind, attention, head, passes of stages."""

    def __init__(self, run: Run):
        model = run.bundle.model
        trained = run.state.params
        head = output_names(run.rows)
        sizes = {name: leaf.size for name, leaf in run.state.merged().items()}
        kernels = {
            name: size
            for name, size in sizes.items()
            if run.rows[name].is_kernel and name not in head
        }
        self._stages = run.bound.stages
        self._hosts = run.pipeline.process[1]
        self._trained = sum(size for name, size in kernels.items() if name in trained)
        self._frozen = sum(kernels.values()) - self._trained
        has_logits = bool(set(run.bound.needs) & {*FIELDS, "divergence"})
        self._head = sum(sizes[name] for name in head) * has_logits
        self._head_trained = any(name in trained for name in head)
        self._head_everywhere = isinstance(model, FlaxModel) and not model.chunked
        config = model.config
        self._width = config.layers * config.heads * config.head_dim

    def of(self, batch: HostBatch, *, stages: bool = True) -> Work:
        """What a step computes, over all processes; passes of the stages where they ran."""
        columns = batch.columns
        before = _before(columns)
        seen: dict[str, int] = {
            "tokens": before.size,
            "pairs": int((before + 1).sum()),
            "attention_width": self._width,
            "head": self._head,
            "head_tokens": int((columns["mask"] != 0).sum()),
        }
        if self._head_everywhere:
            seen["head_tokens"] = seen["tokens"]
        flops = train_flops(
            trained=self._trained,
            frozen=self._frozen,
            head_trained=self._head_trained,
            **seen,
        )
        passes = self._passes(set(columns)) if stages else 0
        flops += passes * forward_flops(weights=self._trained + self._frozen, **seen)
        slots = columns.get("pack", columns["tokens"]).size
        hosts = self._hosts
        return Work(flops * hosts, before.size * hosts, slots * hosts)

    def _passes(self, there: set[str]) -> int:
        """Forward passes of the stages, those left out whose columns are there already."""
        passes = 0
        for stage in self._stages:
            if not stage.writes or not there >= stage.writes.keys():
                passes += stage.passes
                there = there | stage.writes.keys()
        return passes


def _before(columns: dict[str, np.ndarray]) -> np.ndarray:
    """How many tokens of its sequence stand before each one that is computed."""
    if "pack" in columns:
        pack = columns["pack"].astype(np.int64)
        return pack[pack >= 0] % columns["tokens"].shape[-1]
    return np.cumsum(columns["valid"], -1, dtype=np.int64)[columns["valid"]] - 1


def output_names(rows: Table) -> list[str]:
    """The weights that give the logits: kernels onto the vocabulary, else the embedding's table."""
    rows = {name: row for name, row in rows.items() if not name.startswith(CRITIC)}
    kernels = [
        name
        for name, row in rows.items()
        if row.is_kernel and row.outputs == ("vocab",) and "rank" not in row.inputs
    ]
    return kernels or [name for name, row in rows.items() if "vocab" in row.names[:1]]


def peak_memory() -> int:
    """Bytes at the run's peak: the first device's where it says so, else this process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
