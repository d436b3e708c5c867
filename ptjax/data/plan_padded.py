"""No packing: examples of nearly one length, padded to a bucket."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from ptjax.data.order import generator
from ptjax.data.plan import Blocks, Step, placed, widen

_DRAW = 103
_SORTED_TOGETHER = 64


@runtime_checkable
class Orders(Protocol):
    """Gives the examples of an epoch in order."""

    def __call__(self, epoch: int) -> Int[np.ndarray, " D"]:
        """The epoch's examples."""
        ...


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
        orders: Orders,
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
        self.block = batch // blocks.parts
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
            table = generator(self._seed, _DRAW, epoch).permutation(table)
        return table

    def step(self, epoch: int, index: int, block: int) -> Step:
        """One step, with `block` places in every block."""
        dealt = self._dealt
        if dealt[0] != epoch:
            dealt = self._dealt = (epoch, self._deal(epoch))
        chosen = dealt[1][index]
        length = self._buckets[self._bucket(self._longest[chosen[chosen >= 0]]).max()]
        examples = widen(chosen.reshape(self._blocks.parts, -1), block, -1)
        nowhere = np.zeros(examples.shape, np.int32)
        return placed(self._blocks, examples, nowhere, nowhere, 0, int(length))
