"""Fills the columns of a batch from a step of the plan."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ptjax.data.plan import Step
from ptjax.data.store import Store


class HostBatch(NamedTuple):
    """One batch, as far as it is this process's."""

    columns: dict[str, np.ndarray]
    """tokens, valid, mask, weights, and with packing pack: see `ptjax.types`."""
    examples: list[int]
    """By row, the number of its example among the pipeline's; -1 for filler."""


@dataclasses.dataclass(frozen=True)
class Collate:
    """Steps to batches; runs in the workers.

    Args:
      stores: by source, its encoded sequences.
      source: by example, its source.
      starts: by example, where in the store its sequences begin.
      lengths: by example, its sequences' tokens.
      loss_weights: by source.
      row_length: tokens of a packed row.
      shards: (first, end) of this process's shards.

    """

    stores: list[Store]
    source: Int[np.ndarray, " E"]
    starts: Int[np.ndarray, "E N"]
    lengths: Int[np.ndarray, "E N"]
    loss_weights: Float[np.ndarray, " S"]
    row_length: int
    shards: tuple[int, int]

    def __call__(self, step: Step) -> HostBatch:
        """The columns of this process's part of the step."""
        mine = slice(*self.shards)
        chosen = step.examples[mine]
        shards, block, accumulate = chosen.shape
        flat = chosen.reshape(-1)
        real = flat >= 0
        lengths = np.where(real[:, None], self.lengths[flat], 0)
        valid = np.arange(step.length) < lengths[:, :, None]
        tokens, mask = self._fill(flat, valid)
        mask[:, :, 0] = 0
        weights = np.where(real, self.loss_weights[self.source[flat]], 0)
        shape = (len(flat), lengths.shape[1])
        columns = {
            "tokens": tokens,
            "valid": valid,
            "mask": mask,
            "weights": np.broadcast_to(weights[:, None], shape).astype(np.float32),
        }
        if step.rows:
            place = np.arange(block)[None, :, None]
            micro = np.arange(shards)[:, None, None] * step.rows, np.arange(accumulate)
            row = (micro[0] + step.row[mine]) * accumulate + micro[1]
            columns["pack"] = _pack(
                valid,
                row.reshape(-1),
                step.start[mine].reshape(-1),
                np.broadcast_to(place, chosen.shape).reshape(-1),
                (shards * step.rows * accumulate, self.row_length),
            )
        return HostBatch(columns, flat.tolist())

    def _fill(self, flat: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gathers tokens and mask from the stores."""
        tokens = np.zeros(valid.shape, np.int32)
        mask = np.zeros(valid.shape, np.float32)
        sources = np.where(flat >= 0, self.source[flat], -1)
        for index in np.unique(sources[sources >= 0]).tolist():
            mine = np.flatnonzero(sources == index)
            store = self.stores[index]
            positions = self.starts[flat[mine]][:, :, None] + np.arange(valid.shape[2])
            here = np.zeros(valid.shape, bool)
            here[mine] = valid[mine]
            read = positions[valid[mine]]
            tokens[here] = store.tokens[read]
            mask[here] = store.mask[read]
        return tokens, mask


def _pack(
    valid: np.ndarray,
    row: Int[np.ndarray, " B"],
    start: Int[np.ndarray, " B"],
    place: Int[np.ndarray, " B"],
    shape: tuple[int, int],
) -> Int[np.ndarray, "R L"]:
    """Where in its block's flattened [B, N, T] each place of a packed row is found."""
    _, completions, length = valid.shape
    lengths = valid.sum(2)
    begins = start[:, None] + np.cumsum(lengths, 1) - lengths
    columns = begins[:, :, None] + np.arange(length)
    sources = (place[:, None] * completions + np.arange(completions))[:, :, None] * length
    sources = sources + np.arange(length)
    rows = np.broadcast_to(row[:, None, None], valid.shape)
    pack = np.full(shape, -1, np.int32)
    pack[rows[valid], columns[valid]] = sources[valid]
    return pack
