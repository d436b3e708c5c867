"""Packing of sequences whose lengths are known only when they have been sampled."""

import numpy as np
from jaxtyping import Bool, Int

from ptjax.buckets import bucket
from ptjax.data.columns import pack_places
from ptjax.data.packing import best_fit
from ptjax.data.plan import Blocks


def pack_groups(valid: Bool[np.ndarray, "B N T"], blocks: Blocks) -> Int[np.ndarray, "R T"]:
    """The `pack` column of a batch: each block's sequences in as few rows of T as best fit gives.

    All blocks get as many rows as the fullest needs, rounded up so that few shapes occur.

    Args:
      valid: real tokens, laid out as `ptjax.types` says; a sequence without any is in no row.
      blocks: shards and micro-batches of the batch.
    """
    rows, n, length = valid.shape
    shards, accumulate, places = blocks.shards, blocks.accumulate, rows // blocks.parts
    lengths = valid.sum(2).reshape(shards, places, accumulate, n)
    row, start = np.zeros_like(lengths), np.zeros_like(lengths)
    most = 1
    for shard in range(shards):
        for micro in range(accumulate):
            sizes = lengths[shard, :, micro].reshape(-1)
            there = np.flatnonzero(sizes)
            mine, begins = np.zeros_like(sizes), np.zeros_like(sizes)
            mine[there] = best_fit(sizes[there], length)
            for packed in np.unique(mine[there]):
                inside = there[mine[there] == packed]
                begins[inside] = np.cumsum(sizes[inside]) - sizes[inside]
            row[shard, :, micro] = mine.reshape(places, n)
            start[shard, :, micro] = begins.reshape(places, n)
            most = max(most, int(mine.max(initial=0)) + 1)
    most = bucket(most)
    at = (np.arange(shards)[:, None, None, None] * most + row) * accumulate
    at = at + np.arange(accumulate)[:, None]
    place = np.arange(places)[:, None, None] * n + np.arange(n)
    return pack_places(
        valid.reshape(-1, 1, length),
        at.reshape(-1),
        start.reshape(-1),
        np.broadcast_to(place, lengths.shape).reshape(-1),
        (shards * most * accumulate, length),
    )
