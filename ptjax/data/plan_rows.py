"""Packing with a fixed number of rows a step."""

import numpy as np
from jaxtyping import Int

from ptjax.data.order import generator
from ptjax.data.packing import pack_windows
from ptjax.data.plan import Blocks, Step, placed, snake

_DRAW = 101


class PackedRows:
    """Steps of a fixed number of packed rows.

    Rows are packed once. Each epoch deals them anew: rows are sorted by how many examples they
    hold and cut into as many strata as a step has rows; a step takes a random row from each. So
    all steps hold nearly as many examples, and their largest number is known beforehand.

    Args:
      order: the examples, in order.
      sizes: tokens of each of them.
      row_length: tokens of a row.
      rows: rows of a step, a multiple of the number of blocks.
      blocks: how a step is cut.
      length: T.
      seed: None: keep the order.

    """

    def __init__(
        self,
        order: Int[np.ndarray, " D"],
        sizes: Int[np.ndarray, " D"],
        *,
        row_length: int,
        rows: int,
        blocks: Blocks,
        length: int,
        seed: int | None,
    ):
        listed, begins = pack_windows(sizes, row_length)
        self._order, self._sizes = order[listed], sizes[listed]
        self._blocks, self._length, self._seed = blocks, length, seed
        counts = np.diff(begins)
        self.efficiency = float(sizes.sum()) / max(1, len(counts) * row_length)
        self.steps = max(1, -(-len(counts) // rows))
        missing = self.steps * rows - len(counts)
        self._counts = np.append(counts, np.zeros(missing, np.int64))
        self._begins = np.append(begins[:-1], np.full(missing, begins[-1]))
        self._shape = (self.steps, rows)
        self._dealt: tuple[int, np.ndarray] = (0, self._deal(0))
        fullest = -np.sort(-self._counts[self._dealt[1]], axis=1)
        if seed is not None:
            fullest = fullest.max(0, keepdims=True)
        self.block = int(fullest[:, :: blocks.parts].sum(1).max())
        self.shapes = [(rows // blocks.parts, length)]

    def _deal(self, epoch: int) -> Int[np.ndarray, "n R"]:
        """The rows of every step."""
        if self._seed is None:
            return np.arange(len(self._counts)).reshape(self._shape)
        strata = np.argsort(-self._counts, kind="stable").reshape(self._shape[::-1])
        return generator(self._seed, _DRAW, epoch).permuted(strata, axis=1).T

    def step(self, epoch: int, index: int, block: int) -> Step:
        """One step, with `block` places in every block."""
        dealt = self._dealt
        if dealt[0] != epoch:
            dealt = self._dealt = (epoch, self._deal(epoch))
        rows = dealt[1][index]
        rows = rows[np.argsort(-self._counts[rows], kind="stable")]
        places = snake(rows, self._blocks.parts)
        examples = np.full((self._blocks.parts, block), -1, np.int64)
        row, start = np.zeros_like(examples, np.int32), np.zeros_like(examples, np.int32)
        for at, mine in enumerate(places):
            counts, begins = self._counts[mine], self._begins[mine]
            total = int(counts.sum())
            within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
            which = np.repeat(begins, counts) + within
            sizes = self._sizes[which]
            ends = np.cumsum(sizes)
            first = np.repeat(np.cumsum(counts) - counts, counts)
            examples[at, :total] = self._order[which]
            row[at, :total] = np.repeat(np.arange(len(mine)), counts)
            start[at, :total] = ends - sizes - (ends - sizes)[first]
        in_block, length = self.shapes[0]
        return placed(self._blocks, examples, row, start, in_block, length)
