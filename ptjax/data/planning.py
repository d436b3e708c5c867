"""From `config.data` and the lengths to a schedule of one of the three plans."""

import dataclasses

import numpy as np

from ptjax.data.config import DataConfig
from ptjax.data.examples import Examples
from ptjax.data.order import Mixture, interleave
from ptjax.data.packing import best_fit
from ptjax.data.plan import Blocks, Plan
from ptjax.data.plan_batches import PackedBatches
from ptjax.data.plan_padded import PaddedBatches
from ptjax.data.plan_rows import PackedRows
from ptjax.data.schedule import Schedule
from ptjax.errors import UserError

_SHORTEST_BUCKET = 64
_ROUND_LENGTH, _ROUND_BLOCK = 64, 8
_TRIED = 2048
"""Examples that are packed to see how full rows of a length become."""
_FULL = 0.95


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes of batches."""

    blocks: Blocks
    packing: bool
    row_length: int
    """L, tokens of a packed row."""
    rows: int | None
    """Packed rows of a step; None: batch examples, in as many rows as they need."""
    batch: int | None
    """Examples of a step; None: as many as fit into its rows."""
    length: int
    """T with packing: the longest sequence, rounded up."""
    buckets: tuple[int, ...]
    """T without packing."""

    @classmethod
    def of(
        cls, config: DataConfig, parts: list[Examples | None], *, shards: int, accumulate: int
    ) -> "Layout":
        """Reads the sizes from the config, and T from the examples.

        Raises:
          UserError: the batch does not divide into its blocks; the buckets are too short.

        """
        blocks = Blocks(shards, accumulate)
        there = [part for part in parts if part is not None]
        longest = max(int(part.longest.max()) for part in there)
        row_length = _row_length(config, [part.sizes() for part in there], longest, blocks)
        rows = None
        split = f"{shards} shards x {accumulate} micro-batches"
        if config.batch_size is not None:
            if config.batch_size % blocks.parts:
                raise UserError(
                    f"config.data.batch_size = {config.batch_size} does not divide over {split}"
                )
        else:
            tokens = config.tokens_per_batch or 0
            if tokens % (row_length * blocks.parts):
                unit = row_length * blocks.parts
                raise UserError(
                    f"config.data.tokens_per_batch = {tokens} is not a multiple of {unit} = rows "
                    f"of {row_length} tokens x {split}; next is {-(-tokens // unit) * unit}"
                )
            rows = tokens // row_length
        length = min(-(-longest // _ROUND_LENGTH) * _ROUND_LENGTH, config.max_length)
        buckets = config.buckets or _powers_of_two(config.max_length)
        if not config.packing and buckets[-1] < longest:
            raise UserError(
                f"config.data.buckets: the longest is {buckets[-1]}, "
                f"an example has {longest} tokens"
            )
        return cls(blocks, config.packing, row_length, rows, config.batch_size, length, buckets)

    def shapes(
        self, rows: int, length: int, block: int, width: int, extra: tuple[str, ...] = ()
    ) -> dict[str, tuple[int, ...]]:
        """Global shapes of a batch's columns, with those that the kind of data adds."""
        size = self.blocks.parts * block
        sequence = (size, width, length)
        shapes = {"tokens": sequence, "valid": sequence, "mask": sequence, "weights": sequence[:2]}
        extras = {"scores": sequence[:2], "margin": sequence[:1]}
        shapes |= {name: extras.get(name, sequence) for name in extra}
        if rows:
            for name in ("pack", "kl_pack") if "kl_tokens" in extra else ("pack",):
                shapes[name] = (rows * self.blocks.parts, self.row_length)
        return shapes


def make_schedule(
    examples: Examples,
    mixture: Mixture,
    layout: Layout,
    *,
    seed: int | None,
    identity: bytes = b"",
    like: Schedule | None = None,
) -> Schedule:
    """Plans every epoch of a run.

    Args:
      examples: what is read.
      mixture: how often.
      layout: the sizes of batches.
      seed: of the order; None: the files' order.
      identity: what else the order depends on.
      like: another schedule whose shapes are used where they suffice.

    """
    sizes, longest = examples.sizes(), examples.longest

    def plan(counts: tuple[int, ...]) -> Plan:
        def order(epoch: int) -> np.ndarray:
            return interleave(
                examples.source, counts, seed=seed or 0, epoch=epoch, shuffle=seed is not None
            )

        blocks = layout.blocks
        if not layout.packing and layout.batch is not None:
            buckets = layout.buckets
            return PaddedBatches(
                order, longest, batch=layout.batch, blocks=blocks, buckets=buckets, seed=seed
            )
        first = order(0)
        common = {"row_length": layout.row_length, "blocks": blocks, "length": layout.length}
        if layout.rows is not None:
            return PackedRows(first, sizes[first], rows=layout.rows, seed=seed, **common)
        batch = layout.batch or 0
        rows = tuple(rows for rows, _ in like.shapes) if like is not None else ()
        return PackedBatches(first, sizes[first], batch=batch, seed=seed, buckets=rows, **common)

    schedule = Schedule(mixture, plan, identity)
    if layout.batch is None:
        schedule.block = -(-schedule.block // _ROUND_BLOCK) * _ROUND_BLOCK
    return schedule


def _row_length(config: DataConfig, sizes: list[np.ndarray], longest: int, blocks: Blocks) -> int:
    """Tokens of a packed row: the config's, else max_length, or what examples of several need.

    Where examples hold several sequences, two of them would often leave a third of a row of
    max_length empty: rows are then the shortest power of two that holds the largest and is nearly
    full, else the fullest; where none divides the tokens of a block, a length that does.
    """
    largest = max(int(part.max()) for part in sizes)
    given = config.row_length or config.max_length
    one_each = largest <= longest
    if not config.packing or (largest <= given and (one_each or config.row_length)):
        return given
    needed = -(-largest // _ROUND_LENGTH) * _ROUND_LENGTH
    what = f"the sequences of the largest example take {largest} tokens together"
    if config.row_length:
        raise UserError(
            f"config.data.row_length = {config.row_length}: {what}; set {needed}, or a smaller "
            "config.data.max_length"
        )
    some = sizes[0][sizes[0] > 0][:_TRIED]
    if config.batch_size is not None:
        block = max(1, config.batch_size // blocks.parts)
        parts = [some[i : i + block] for i in range(0, len(some), block)]
        lengths = [needed * times for times in (1, 2, 4)]
        return min(lengths, key=lambda length: sum(_slots(part, length) for part in parts))
    tokens = (config.tokens_per_batch or 0) // blocks.parts
    # Where the devices allow it, a length that does not depend on how many there are.
    usual = [64 << k for k in range(16) if largest <= 64 << k]
    lengths = [length for length in usual if tokens % length == 0] or [
        tokens // rows for rows in range(tokens // largest, 0, -1) if tokens % rows == 0
    ]
    if not lengths:
        split = f"{blocks.shards} shards x {blocks.accumulate} micro-batches"
        raise UserError(
            f"config.data.tokens_per_batch = {config.tokens_per_batch} leaves {tokens} tokens "
            f"to each of {split}, but {what}; set {needed * blocks.parts}, or a smaller "
            "config.data.max_length"
        )
    full = [some.sum() / _slots(some, length) for length in lengths]
    enough = [i for i, share in enumerate(full) if share >= _FULL]
    return lengths[enough[0] if enough else int(np.argmax(full))]


def _slots(sizes: np.ndarray, length: int) -> int:
    """Tokens of the rows that these examples take."""
    return length * (int(best_fit(sizes, length).max(initial=0)) + 1)


def _powers_of_two(longest: int) -> tuple[int, ...]:
    """Powers of two from 64 up, the last one cut to the longest length."""
    buckets = [_SHORTEST_BUCKET]
    while buckets[-1] < longest:
        buckets.append(2 * buckets[-1])
    return (*(bucket for bucket in buckets if bucket < longest), longest)
