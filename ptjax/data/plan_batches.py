"""Packing with a fixed number of examples a step."""

import numpy as np
from jaxtyping import Int

from ptjax.data.order import generator
from ptjax.data.packing import best_fit
from ptjax.data.plan import Blocks, Step, by_size, placed, widen

_DRAW = 102


class PackedBatches:
    """Steps of a fixed number of examples, packed; the number of rows comes from few buckets.

    Examples are sorted by size and cut into as many strata as a step has examples; a step takes a
    random one from each, so that all steps hold nearly as many tokens. Epochs differ in the order
    of the steps.

    Args:
      order: the examples, in order.
      sizes: tokens of each of them.
      row_length: tokens of a row.
      batch: examples of a step, a multiple of the number of blocks.
      blocks: how a step is cut.
      length: T.
      seed: None: keep the order.
      buckets: numbers of rows of a block that occur anyway.

    """

    def __init__(
        self,
        order: Int[np.ndarray, " D"],
        sizes: Int[np.ndarray, " D"],
        *,
        row_length: int,
        batch: int,
        blocks: Blocks,
        length: int,
        seed: int | None,
        buckets: tuple[int, ...] = (),
    ):
        self._blocks, self._length, self._seed = blocks, length, seed
        self.steps = max(1, -(-len(order) // batch))
        missing = np.full(self.steps * batch - len(order), -1, np.int64)
        table = np.append(np.arange(len(order)), missing).reshape(self.steps, batch)
        if seed is not None:
            strata = np.append(np.argsort(-sizes, kind="stable"), missing)
            strata = strata.reshape(batch, self.steps)
            table = generator(seed, _DRAW).permuted(strata, axis=1).T
        sized = np.append(sizes, 0)
        self.block = batch // blocks.parts
        self._chosen = np.stack([by_size(step, sized, blocks.parts) for step in table])
        self._sizes = sized[self._chosen]
        self._row = np.zeros(self._chosen.shape, np.int32)
        needed = np.ones(self.steps, np.int64)
        for at in np.ndindex(self._chosen.shape[:2]):
            some = self._sizes[at] > 0
            self._row[at][some] = best_fit(self._sizes[at][some], row_length)
            needed[at[0]] = max(needed[at[0]], self._row[at].max() + 1)
        unit = max(1, -(-int(needed.max()) // 8))
        own = range(unit, int(needed.max()) + unit, unit)
        known = np.array(
            sorted({*buckets, *(rows for rows in own if rows > max(buckets, default=0))})
        )
        self._rows = known[np.searchsorted(known, needed)]
        self._chosen = np.append(order, -1)[self._chosen]
        self.shapes = [(rows, length) for rows in np.unique(self._rows).tolist()]
        places = int(self._rows.sum()) * blocks.parts * row_length
        self.efficiency = float(sizes.sum()) / max(1, places)
        self._dealt: tuple[int, np.ndarray] = (0, self._deal(0))

    def _deal(self, epoch: int) -> Int[np.ndarray, " n"]:
        """The order of the steps."""
        if self._seed is None:
            return np.arange(self.steps)
        return generator(self._seed, _DRAW, epoch).permutation(self.steps)

    def step(self, epoch: int, index: int, block: int) -> Step:
        """One step, with `block` places in every block."""
        dealt = self._dealt
        if dealt[0] != epoch:
            dealt = self._dealt = (epoch, self._deal(epoch))
        at = int(dealt[1][index])
        row, sizes = self._row[at], self._sizes[at]
        same = row[:, :, None] == row[:, None, :]
        before = np.tril(np.ones(same.shape[1:], bool), -1)
        start = (same & before).astype(np.int64) @ sizes[:, :, None]
        return placed(
            self._blocks,
            widen(self._chosen[at], block, -1),
            widen(row, block, 0),
            widen(start[:, :, 0].astype(np.int32), block, 0),
            int(self._rows[at]),
            self._length,
        )
