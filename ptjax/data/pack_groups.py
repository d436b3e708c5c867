"""Packing of sequences whose lengths are known only when they have been sampled."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ptjax.buckets import bucket
from ptjax.data.packing import best_fit
from ptjax.data.plan import Blocks

WIDEST = 4
"""Of the longest sequence: tokens of a row in which several answers stand behind one prompt."""
_ROUND = 128
"""Rows that are made for a group are a multiple of so many tokens long."""


class _Piece(NamedTuple):
    """Tokens of one sequence that stand in a row together: from `begin` to `end` of its places."""

    sequence: int
    begin: int
    end: int


def pack_groups(
    columns: Mapping[str, np.ndarray],
    blocks: Blocks,
    *,
    prompts_once: bool,
    answer: int | None = None,
) -> Int[np.ndarray, "R L"]:
    """The `pack` column of a batch: each block's sequences in as few rows as best fit gives.

    All blocks get as many rows as the fullest needs, rounded up so that few shapes occur. Where
    prompts stand once, a group is cut into runs that fit into a row, each behind the prompt; rows
    are then T tokens, `WIDEST` times as many or as many as the largest group has, whichever takes
    fewest in all.

    Args:
      columns: `tokens`, `valid` and `mask`, laid out as `ptjax.types` says; a sequence without
        valid tokens is in no row.
      blocks: shards and micro-batches of the batch.
      prompts_once: whether what a group's sequences begin with alike is left out of all but the
        first of a run.
      answer: tokens of an answer at most; None: rows of a group's size are no choice.

    Raises:
      ValueError: the batch does not divide into its blocks.
    """
    tokens, valid, mask = (columns[name] for name in ("tokens", "valid", "mask"))
    count, n, length = valid.shape
    if count % blocks.parts:
        raise ValueError(f"{count} groups do not divide into {blocks}")
    alike = _alike(tokens, valid, mask) if prompts_once else np.zeros(count, np.int64)
    widths = {length}
    if alike.any():
        several = length * min(n, WIDEST)
        whole = several if answer is None else whole_group(length, n, answer)
        widths |= {min(several, whole), whole}
    made = [_pack(valid.sum(2), alike, length, width, blocks) for width in sorted(widths)[::-1]]
    return min(made, key=np.size)


def whole_group(length: int, n: int, answer: int) -> int:
    """Tokens of a row for the largest group: a prompt with its answer, and the other answers.

    The last token of the prompt stands before each of them again.
    """
    tokens = length + (n - 1) * (answer + 1)
    return min(tokens + -tokens % _ROUND, length * n)


def _pack(
    lengths: Int[np.ndarray, "B N"],
    alike: Int[np.ndarray, " B"],
    length: int,
    width: int,
    blocks: Blocks,
) -> Int[np.ndarray, "R L"]:
    """The column, of rows of this width."""
    count, n = lengths.shape
    shards, accumulate, places = blocks.shards, blocks.accumulate, count // blocks.parts
    packed = []
    for block in range(blocks.parts):
        shard, micro = divmod(block, accumulate)
        runs = []
        for place in range(places):
            group = (shard * places + place) * accumulate + micro
            runs += _runs(lengths[group], int(alike[group]), place * n, width)
        sizes = np.array([sum(end - begin for _, begin, end in run) for run in runs], np.int64)
        packed.append((runs, best_fit(sizes, width)))
    most = bucket(max(int(rows.max(initial=0)) + 1 for _, rows in packed))
    pack = np.full((shards, most, accumulate, width), -1, np.int32)
    for block, (runs, rows) in enumerate(packed):
        shard, micro = divmod(block, accumulate)
        filled = np.zeros(most, np.int64)
        for run, row in zip(runs, rows.tolist(), strict=True):
            for sequence, begin, end in run:
                start = filled[row]
                filled[row] += end - begin
                stands = sequence * length + np.arange(begin, end)
                pack[shard, row, micro, start : filled[row]] = stands
    return pack.reshape(-1, width)


def _alike(
    tokens: np.ndarray, valid: Bool[np.ndarray, "B N T"], mask: np.ndarray
) -> Int[np.ndarray, " B"]:
    """Tokens that a group's sequences have in common before the first that is trained."""
    there = np.asarray(valid.any(2))
    first = np.take_along_axis(tokens, there.argmax(1)[:, None, None], 1)
    same = ((tokens == first) & valid & (mask == 0)) | ~there[..., None]
    return np.logical_and.accumulate(same.all(1), 1).sum(1)


def _runs(lengths: Int[np.ndarray, " N"], alike: int, sequence: int, width: int) -> list:
    """A group's sequences in runs that fit into a row; those behind a run's first begin later.

    The last token of the prompt is read again: it predicts the first of the answer.
    """
    runs, room = [], 0
    for i in np.flatnonzero(lengths).tolist():
        size, without = int(lengths[i]), max(alike - 1, 0)
        if not without or size - without > room:
            runs.append([])
            room, without = width, 0
        runs[-1].append(_Piece(sequence + i, without, size))
        room -= size - without
    return runs
