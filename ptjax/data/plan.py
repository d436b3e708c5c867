"""Which example stands where in which batch: a pure function of lengths, seed and config.

A step's examples do not depend on how many shards, micro-batches or hosts share them; only where
in the batch they stand does.
"""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from ptjax.data.order import generator
from ptjax.data.packing import best_fit, pack_windows

_ROWS, _STEPS, _BATCHES = 101, 102, 103
_SORTED_TOGETHER = 64


class Step(NamedTuple):
    """One optimizer step's examples in their places."""

    examples: Int[np.ndarray, "S B A"]
    """Example of every place (shard, place, micro-batch); -1 where there is none."""
    row: Int[np.ndarray, "S B A"]
    """Row of its (shard, micro-batch) block that the example is packed in."""
    start: Int[np.ndarray, "S B A"]
    """Its first column there."""
    rows: int
    """Packed rows of a block; 0 without packing."""
    length: int
    """T, the tokens a sequence is padded to."""


class Blocks(NamedTuple):
    """Into how many equal parts a step is cut."""

    shards: int
    accumulate: int

    @property
    def count(self) -> int:
        """Blocks of a step."""
        return self.shards * self.accumulate


class Plan(Protocol):
    """One epoch's steps."""

    steps: int
    """Steps of an epoch."""
    block: int
    """Examples of the fullest (shard, micro-batch) block, in any epoch."""
    shapes: list[tuple[int, int]]
    """(rows of a block, length) of every step that can occur."""

    def step(self, epoch: int, index: int, block: int) -> Step:
        """One step, with `block` places in every block."""
        ...


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
        self.block = int(fullest[:, :: blocks.count].sum(1).max())
        self.shapes = [(rows // blocks.count, length)]

    def _deal(self, epoch: int) -> Int[np.ndarray, "n R"]:
        """The rows of every step."""
        if self._seed is None:
            return np.arange(len(self._counts)).reshape(self._shape)
        strata = np.argsort(-self._counts, kind="stable").reshape(self._shape[::-1])
        return generator(self._seed, _ROWS, epoch).permuted(strata, axis=1).T

    def step(self, epoch: int, index: int, block: int) -> Step:
        """One step, with `block` places in every block."""
        dealt = self._dealt
        if dealt[0] != epoch:
            dealt = self._dealt = (epoch, self._deal(epoch))
        rows = dealt[1][index]
        rows = rows[np.argsort(-self._counts[rows], kind="stable")]
        places = _snake(rows, self._blocks.count)
        examples = np.full((self._blocks.count, block), -1, np.int64)
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
        return _placed(self._blocks, examples, row, start, *self.shapes[0])


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
            table = generator(seed, _STEPS).permuted(strata, axis=1).T
        sized = np.append(sizes, 0)
        self.block = batch // blocks.count
        self._chosen = np.stack([_by_size(step, sized, blocks.count) for step in table])
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
        places = int(self._rows.sum()) * blocks.count * row_length
        self.efficiency = float(sizes.sum()) / max(1, places)
        self._dealt: tuple[int, np.ndarray] = (0, self._deal(0))

    def _deal(self, epoch: int) -> Int[np.ndarray, " n"]:
        """The order of the steps."""
        if self._seed is None:
            return np.arange(self.steps)
        return generator(self._seed, _STEPS, epoch).permutation(self.steps)

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
        columns = (self._chosen[at], row, start[:, :, 0].astype(np.int32))
        wide = [
            _widen(column, block, fill) for column, fill in zip(columns, (-1, 0, 0), strict=True)
        ]
        return _placed(self._blocks, *wide, int(self._rows[at]), self._length)


class PaddedBatches:
    """Steps of a fixed number of examples, padded to a length from few buckets.

    Examples of nearly the same length are batched: sorted within windows of the epoch's random
    order, then the batches are shuffled.

    Args:
      orders: the epochs' examples in order, all epochs alike but for the order.
      sizes: by example, tokens of its longest sequence.
      batch: examples of a step, a multiple of the number of blocks.
      blocks: how a step is cut.
      buckets: lengths to pad to, ascending.
      seed: None: keep the order.
    """

    def __init__(
        self,
        orders: "Orders",
        sizes: Int[np.ndarray, " E"],
        *,
        batch: int,
        blocks: Blocks,
        buckets: tuple[int, ...],
        seed: int | None,
    ):
        self._orders, self._longest, self._batch = orders, sizes, batch
        self._blocks, self._seed = blocks, seed
        self._buckets = np.array(buckets)
        self.block = batch // blocks.count
        self._dealt: tuple[int, np.ndarray] = (0, self._deal(0))
        self.steps = len(self._dealt[1])
        longest = np.append(sizes, 0)[self._dealt[1]]
        present = self._bucket(longest.max(1))
        places = int(self._buckets[present].sum()) * batch
        self.efficiency = float(longest.sum()) / max(1, places)
        chosen = np.unique(self._bucket(longest[longest > 0]) if seed is not None else present)
        self.shapes = [(0, length) for length in self._buckets[chosen].tolist()]

    def _bucket(self, sizes: Int[np.ndarray, "..."]) -> np.ndarray:
        return np.searchsorted(self._buckets, sizes)

    def _deal(self, epoch: int) -> Int[np.ndarray, "n b"]:
        """The examples of every step."""
        order = self._orders(epoch)
        window = self._batch * _SORTED_TOGETHER
        if self._seed is not None:
            parts = [order[at : at + window] for at in range(0, len(order), window)]
            order = np.concatenate(
                [part[np.argsort(-self._longest[part], kind="stable")] for part in parts]
            )
        missing = -len(order) % self._batch
        table = np.append(order, np.full(missing, -1, np.int64)).reshape(-1, self._batch)
        if self._seed is not None:
            table = generator(self._seed, _BATCHES, epoch).permutation(table)
        return table

    def step(self, epoch: int, index: int, block: int) -> Step:
        """One step, with `block` places in every block."""
        dealt = self._dealt
        if dealt[0] != epoch:
            dealt = self._dealt = (epoch, self._deal(epoch))
        chosen = dealt[1][index]
        length = self._buckets[self._bucket(self._longest[chosen[chosen >= 0]]).max()]
        examples = _widen(chosen.reshape(self._blocks.count, -1), block, -1)
        nowhere = np.zeros(examples.shape, np.int32)
        return _placed(self._blocks, examples, nowhere, nowhere, 0, int(length))


class Orders(Protocol):
    """Gives the examples of an epoch in order."""

    def __call__(self, epoch: int) -> Int[np.ndarray, " D"]:
        """The epoch's examples."""
        ...


def _snake(items: Int[np.ndarray, " n"], parts: int) -> Int[np.ndarray, "parts m"]:
    """Deals sorted items to parts, back and forth, so that the parts come out alike."""
    table = items.reshape(-1, parts).copy()
    table[1::2] = table[1::2, ::-1]
    return table.T


def _by_size(step: np.ndarray, sizes: np.ndarray, parts: int) -> np.ndarray:
    """A step's examples, dealt to its blocks by size."""
    return _snake(step[np.argsort(-sizes[step], kind="stable")], parts)


def _widen(values: np.ndarray, width: int, fill: int) -> np.ndarray:
    """Appends columns of `fill` up to this width."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)


def _placed(
    blocks: Blocks, examples: np.ndarray, row: np.ndarray, start: np.ndarray, rows: int, length: int
) -> Step:
    """From [block, place] to [shard, place, micro-batch]."""
    shape = (blocks.shards, blocks.accumulate, examples.shape[1])
    moved = [values.reshape(shape).swapaxes(1, 2) for values in (examples, row, start)]
    return Step(*moved, rows, length)
