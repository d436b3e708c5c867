"""What a step costs, counted from the model's table and the batch's true lengths."""

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ptjax.algorithms.base import Bound
from ptjax.data import HostBatch
from ptjax.metrics import forward_flops, train_flops
from ptjax.models.body import heads_in_parts
from ptjax.models.config import ModelConfig
from ptjax.models.decoder import Decoder
from ptjax.models.families import CRITIC
from ptjax.models.flax_adapter import FlaxModel
from ptjax.models.spec import Param, Table
from ptjax.ops.logprobs import FIELDS
from ptjax.types import TrainState


class Work(NamedTuple):
    """What a step computes.

    Attributes:
      flops: the model's, of the loss and of the stages that ran.
      filled: places of its rows that hold a token.
      slots: all places, with padding.
    """

    flops: float
    filled: float
    slots: float


class Seen(NamedTuple):
    """What of a batch the flops depend on.

    Attributes:
      tokens: that the decoder sees, padding left out.
      pairs: query-key pairs attended, Σ n(n+1)/2 over sequences of n tokens.
      head_tokens: those that the head is computed for.
    """

    tokens: int
    pairs: int
    head_tokens: int


class FlopCounter:
    """Model flops of a run's batches: weights by kind, attention, head, passes of stages.

    Args:
      model: the policy.
      rows: the table's rows of all its leaves.
      state: its leaves, or shapes in their place.
      bound: the method.
      share: of a batch's rows that the batches given to `of` hold, those of one process.
    """

    def __init__(
        self, model: Decoder, rows: Table, state: TrainState, bound: Bound, share: float = 1.0
    ):
        trained = state.params
        head = output_names(rows)
        sizes = {
            name: _active(leaf.size, rows[name], model.config)
            for name, leaf in state.merged().items()
        }
        kernels = {
            name: size for name, size in sizes.items() if rows[name].is_kernel and name not in head
        }
        self._stages = bound.stages
        self._share = share
        self._trained = sum(size for name, size in kernels.items() if name in trained)
        self._frozen = sum(kernels.values()) - self._trained
        has_logits = bool(set(bound.needs) & {*FIELDS, "divergence"})
        self._linear = bound.linear is not None
        self._head = sum(sizes[name] for name in head) * has_logits
        self._head_trained = any(name in trained for name in head)
        self._head_everywhere = isinstance(model, FlaxModel) and not model.chunked
        config = model.config
        self._heads_in_parts = heads_in_parts(config)
        self._asked = _together(kernels, ("q", "k", "v"))
        self._last = _together(kernels, ("down",))
        # Behind experts their results are read for the gradient of their weights.
        self._last_is_read = "layers.post_mlp_norm" in rows or bool(config.experts)
        self._fed = 0 if config.experts else _together(kernels, ("gate", "up"))
        self._width = config.layers * config.heads * config.head_dim

    def of(self, batch: HostBatch, *, stages: bool = True) -> Work:
        """What a step computes, over all processes; passes of the stages where they ran."""
        columns = batch.columns
        before = _before(columns)
        scored = before.size if self._head_everywhere else int((columns["mask"] != 0).sum())
        seen = Seen(before.size, int((before + 1).sum()), scored)
        passes = self._passes(set(columns)) if stages else 0
        flops = self.train(seen) + passes * self.forward(seen)
        slots = columns.get("pack", columns["tokens"]).size
        return Work(*(count / self._share for count in (flops, before.size, slots)))

    def train(self, seen: Seen) -> float:
        """Of a step's forward and backward pass, each once."""
        return train_flops(
            trained=self._trained,
            frozen=self._frozen,
            attention_width=self._width,
            head=self._head,
            head_trained=self._head_trained,
            **seen._asdict(),
        )

    def forward(self, seen: Seen) -> float:
        """Of a forward pass."""
        return forward_flops(
            weights=self._trained + self._frozen,
            attention_width=self._width,
            head=self._head,
            **seen._asdict(),
        )

    def again(self, seen: Seen, remat: str) -> float:
        """What a step's backward pass computes a second time, which `train` leaves out.

        Attention's scores always are (2 of its 4 flops a pair and unit of width), and the logits
        where the loss is not linear in the log-probs; `dots` adds the rest of attention, `full`
        and `minimal` that and the products of the layers whose results are read: not the MLP's
        last, but for a norm behind it. `minimal` computes two blocks whose results were read once
        more, without their last product: attention, and the MLP before such a norm.

        Args:
          seen: of the batch.
          remat: a key of `ptjax.models.compute.REMAT`.
        """
        attention = 4 * self._width * seen.pairs
        flops = attention / 2
        if not self._linear:
            flops += 2 * self._head * seen.head_tokens
        if remat in ("dots", "full", "minimal"):
            flops += attention
        if remat in ("full", "minimal"):
            last = 0 if self._last_is_read else self._last
            flops += 2 * seen.tokens * (self._trained + self._frozen - last)
        if remat == "minimal" and self._heads_in_parts:
            flops += attention + 2 * seen.tokens * self._asked
        if remat == "minimal" and self._last_is_read:
            flops += 2 * seen.tokens * self._fed
        return float(flops)

    def _passes(self, there: set[str]) -> int:
        """Forward passes of the stages, those left out whose columns are there already."""
        passes = 0
        for stage in self._stages:
            if not stage.writes or not there >= stage.writes.keys():
                passes += stage.passes
                there = there | stage.writes.keys()
        return passes


def _active(size: int, row: Param, config: ModelConfig) -> int:
    """Of a leaf's parameters those that a token is multiplied with: of experts', the chosen."""
    return size * config.top_k // config.experts if "experts" in row.stack else size


def _together(kernels: Mapping[str, int], names: Sequence[str]) -> int:
    """Parameters of a layer's kernels of these names, adapters included."""
    return sum(
        size
        for name, size in kernels.items()
        if name.removeprefix("layers.").split(".")[0] in names
    )


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
