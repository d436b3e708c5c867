"""Which example stands where in which batch: a pure function of lengths, seed and config.

A step's examples do not depend on how many shards, micro-batches or hosts share them; only where
in the batch they stand does.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int


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
    def parts(self) -> int:
        """Blocks of a step."""
        return self.shards * self.accumulate


@runtime_checkable
class Plan(Protocol):
    """One epoch's steps."""

    steps: int
    """Steps of an epoch."""
    block: int
    """Examples of the fullest (shard, micro-batch) block, in any epoch."""
    shapes: list[tuple[int, int]]
    """(rows of a block, length) of every step that can occur."""
    efficiency: float
    """Share of the batches' places that hold a token."""

    def step(self, epoch: int, index: int, block: int) -> Step:
        """One step, with `block` places in every block."""
        ...


def snake(items: Int[np.ndarray, " n"], parts: int) -> Int[np.ndarray, "P m"]:
    """Deals sorted items to parts, back and forth, so that the parts come out alike."""
    table = items.reshape(-1, parts).copy()
    table[1::2] = table[1::2, ::-1]
    return table.T


def by_size(step: np.ndarray, sizes: np.ndarray, parts: int) -> np.ndarray:
    """A step's examples, dealt to its blocks by size."""
    return snake(step[np.argsort(-sizes[step], kind="stable")], parts)


def widen(values: np.ndarray, width: int, fill: int) -> np.ndarray:
    """Appends columns of `fill` up to this width."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)


def placed(
    blocks: Blocks, examples: np.ndarray, row: np.ndarray, start: np.ndarray, rows: int, length: int
) -> Step:
    """From [block, place] to [shard, place, micro-batch]."""
    shape = (blocks.shards, blocks.accumulate, examples.shape[1])
    examples, row, start = (
        values.reshape(shape).swapaxes(1, 2) for values in (examples, row, start)
    )
    return Step(examples, row, start, rows, length)
