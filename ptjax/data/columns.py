"""Fills the columns of a batch from a step of the plan."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ptjax.data.flat import Flat
from ptjax.data.pieces import Pieces
from ptjax.data.plan import Step
from ptjax.data.ragged import Ragged
from ptjax.data.store import FIELDS


class HostBatch(NamedTuple):
    """One batch, as far as it is this process's."""

    columns: dict[str, np.ndarray]
    """tokens, valid, mask, weights, with packing pack, and those of the kind: see `ptjax.types`."""
    examples: list[int]
    """By row, the number of its example among the pipeline's; -1 for filler."""


@dataclasses.dataclass(frozen=True)
class Collate:
    """Steps to batches; runs in the workers.

    Args:
      stores: by source, its encoded sequences.
      source: by example, its source.
      pieces: where in the store its sequences are.
      scores: by example and sequence, the data's judgement.
      margin: by example, how much better a pair's chosen side is.
      mismatched: by example, where its prompt with another completion is.
      shared: by example, tokens of the prompt that stands once for all its completions.
      loss_weights: by source.
      row_length: tokens of a packed row.
      shards: those of this process, in order.
      extra: the columns that the kind of data adds.
      computed: columns of numbers that were computed before.

    """

    stores: list[Flat]
    source: Int[np.ndarray, " E"]
    pieces: Pieces
    scores: Float[np.ndarray, "E N"]
    margin: Float[np.ndarray, " E"]
    mismatched: Pieces | None
    shared: Int[np.ndarray, " E"]
    loss_weights: Float[np.ndarray, " S"]
    row_length: int
    shards: tuple[int, ...]
    extra: tuple[str, ...] = ()
    computed: Mapping[str, Ragged] = dataclasses.field(default_factory=dict)

    def __call__(self, step: Step) -> HostBatch:
        """The columns of this process's part of the step."""
        chosen = step.examples[[*self.shards]]
        flat = chosen.reshape(-1)
        real = flat >= 0
        columns = self._sequences(self.pieces, flat, step.length)
        weights = np.where(real, self.loss_weights[self.source[flat]], 0)[:, None]
        there = columns["valid"].any(2)
        columns["weights"] = np.where(there, weights, 0).astype(np.float32)
        if "scores" in self.extra:
            columns["scores"] = np.where(real[:, None], self.scores[flat], 0)
        if "margin" in self.extra:
            columns["margin"] = np.where(real, self.margin[flat], 0)
        if "labels" in self.extra:
            columns["labels"] = self._read(self.pieces, flat, columns["valid"], "labels")
        if self.mismatched is not None:
            other = self._sequences(self.mismatched, flat, step.length)
            columns |= {f"kl_{name}": column for name, column in other.items()}
        for name, ragged in self.computed.items():
            columns[name] = ragged.column(flat, step.length)
        if step.rows:
            for name in ("", "kl_") if self.mismatched is not None else ("",):
                columns[f"{name}pack"] = self._packed(columns[f"{name}valid"], step, flat)
        return HostBatch(columns, flat.tolist())

    def _sequences(self, pieces: Pieces, flat: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Tokens, valid and mask of these examples."""
        lengths = np.where((flat >= 0)[:, None], pieces.lengths[flat], 0)
        valid = np.arange(length) < lengths[:, :, None]
        tokens = self._read(pieces, flat, valid, "tokens")
        mask = self._read(pieces, flat, valid, "mask").astype(np.float32)
        mask[:, :, 0] = 0
        return {"tokens": tokens, "valid": valid, "mask": mask}

    def _read(self, pieces: Pieces, flat: np.ndarray, valid: np.ndarray, field: str) -> np.ndarray:
        """One of the stores' flat arrays at the valid places of these examples."""
        values = np.zeros(valid.shape, FIELDS[field])
        sources = np.where(flat >= 0, self.source[flat], -1)
        for index in np.unique(sources[sources >= 0]).tolist():
            mine = np.flatnonzero(sources == index)
            positions = pieces.take(flat[mine]).positions(valid.shape[2])
            here = np.zeros(valid.shape, bool)
            here[mine] = valid[mine]
            values[here] = self.stores[index].read(field, positions[valid[mine]])
        return values

    def _packed(self, valid: np.ndarray, step: Step, flat: np.ndarray) -> np.ndarray:
        """The pack column of this process's part of the step."""
        shared = np.where(flat >= 0, self.shared[flat], 0)
        mine = [*self.shards]
        shards, block, accumulate = step.examples[mine].shape
        place = np.arange(block)[None, :, None]
        shard, micro = np.arange(shards)[:, None, None] * step.rows, np.arange(accumulate)
        row = (shard + step.row[mine]) * accumulate + micro
        return pack_places(
            valid,
            row.reshape(-1),
            step.start[mine].reshape(-1),
            np.broadcast_to(place, step.examples[mine].shape).reshape(-1),
            (shards * step.rows * accumulate, self.row_length),
            left_out(shared, np.any(valid, axis=2)),
        )


def left_out(
    prompts: Int[np.ndarray, " B"], there: Bool[np.ndarray, "B N"]
) -> Int[np.ndarray, "B N"]:
    """Tokens at the beginning of each sequence that a packed row does without.

    The prompt stands once, in the first sequence that is there; the others begin with its last
    token, which predicts the first of their own.
    """
    others = there & (np.cumsum(there, 1) > 1)
    return others * np.maximum(prompts - 1, 0)[:, None]


def pack_places(
    valid: np.ndarray,
    row: Int[np.ndarray, " B"],
    start: Int[np.ndarray, " B"],
    place: Int[np.ndarray, " B"],
    shape: tuple[int, int],
    without: Int[np.ndarray, "B N"],
) -> Int[np.ndarray, "R L"]:
    """Where in its block's flattened [B, N, T] each place of a packed row is found.

    Args:
      valid: the real tokens, from place 0 on.
      row: of each example.
      start: its first column there.
      place: its place in its block.
      shape: rows and their length.
      without: tokens at the beginning of each sequence that are left out.
    """
    _, completions, length = valid.shape
    valid = valid & (np.arange(length) >= without[:, :, None])
    lengths = valid.sum(2)
    begins = start[:, None] + np.cumsum(lengths, 1) - lengths
    columns = (begins - without)[:, :, None] + np.arange(length)
    sources = (place[:, None] * completions + np.arange(completions))[:, :, None] * length
    sources = sources + np.arange(length)
    rows = np.broadcast_to(row[:, None, None], valid.shape)
    pack = np.full(shape, -1, np.int32)
    pack[rows[valid], columns[valid]] = sources[valid]
    return pack
