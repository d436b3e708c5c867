"""The sequences of a source, whose rows the processes of a run have encoded a share each.

All gather what a plan is made of, some 40 bytes a sequence, so that each makes the plan that one
process alone would make. Tokens stay, memory-mapped, with the process that made them, and one that
needs them for a batch asks for them: 5 bytes for each token that it feeds. They are not made again
from their rows: a document cut into pieces would be tokenised once for each, a Parquet file decoded
by the row group for each row, what is held out tokenised in every evaluation. Nor are they handed
to all at the start, for each would then keep all of the data.
"""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, Shaped

from ptjax.data.flat import FLAT, Flat, answer
from ptjax.data.store import FIELDS, Store, together
from ptjax.hosts import exchange
from ptjax.hosts.peers import Peers


class Sequences:
    """What is known of every sequence of a source, and where to read its tokens.

    Args:
      store: this process's share.
      metas: of each process's store, by process.
      share: the rows that are in this process's store.

    Attributes:
      flat: the tokens of all.
      bad: reason -> rows that are in no store.
      files: by flat field, size and checksum of its file, had one process encoded all.
      rows, lengths, ...: by sequence, as `ptjax.data.store.FIELDS` says.
      starts: where in the flat fields each begins.
    """

    def __init__(self, store: Store, metas: Sequence[dict[str, Any]], share: slice):
        self._store, self._share = store, share
        bad: collections.Counter[str] = collections.Counter()
        for meta in metas:
            bad.update(meta["bad"])
        self.bad = dict(bad)
        parts = {name: [meta["files"][name] for meta in metas] for name in FLAT}
        self.files = {name: together(part, FIELDS[name]) for name, part in parts.items()}
        self.lengths = exchange.gathered(store.lengths)
        self.rows = exchange.gathered(store.rows)
        self.keys = exchange.gathered(store.keys)
        firsts = exchange.gathered(np.diff(store.examples, prepend=-1))
        self.examples = np.cumsum(firsts) - 1
        self.prompts = exchange.gathered(store.prompts)
        self.scores = exchange.gathered(store.scores)
        self.margins = exchange.gathered(store.margins)
        self.starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        ends = np.cumsum(exchange.gathered(np.array([len(store.tokens)])))
        peers = Peers(functools.partial(answer, store)) if len(metas) > 1 else None
        self.flat = Flat(store, ends, peers, jax.process_index() if peers else 0)

    def mine(self, rows: Int[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
        """Which of these rows this process has encoded."""
        return (rows >= self._share.start) & (rows < self._share.stop)

    def own(self, name: str) -> Shaped[np.ndarray, " f"]:
        """A flat field as far as this process has it; it begins at `flat.begin`."""
        return getattr(self._store, name)

    def count_trained(
        self, rows: Int[np.ndarray, " S"], starts: np.ndarray, lengths: np.ndarray
    ) -> Int[np.ndarray, " S"]:
        """Trained tokens of stretches of these rows, in order; each process counts in its own."""
        mine = self.mine(rows)
        starts = starts[mine] - self.flat.begin
        return exchange.gathered(count_trained(self.own("mask"), starts, lengths[mine]))


def count_trained(
    mask: Bool[np.ndarray, " F"], starts: Int[np.ndarray, " S"], lengths: Int[np.ndarray, " S"]
) -> Int[np.ndarray, " S"]:
    """Trained tokens of every sequence, its first token never counted."""
    counts = np.zeros(len(starts), np.int64)
    some = np.flatnonzero(lengths > 1)
    if not len(some):
        return counts
    edges = np.stack([starts[some] + 1, starts[some] + lengths[some]], 1)
    order = np.argsort(edges[:, 0], kind="stable")
    flat = np.minimum(edges[order].ravel(), len(mask) - 1)
    sums = np.add.reduceat(mask, flat, dtype=np.int64)[::2]
    if edges[order[-1], 1] >= len(mask):
        sums[-1] = np.sum(mask[edges[order[-1], 0] :], dtype=np.int64)
    counts[some[order]] = sums
    return counts
