"""The order of examples: which source, which of its rows, in which pass."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ptjax.data.config import SourceConfig


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How many examples of each source an epoch holds.

    Without weights an epoch holds every example once. With weights it is as long as it takes to
    see every source once in full, smaller shares being repeated. A source whose `epochs` are over
    drops out of later epochs; the run ends when all have.

    Args:
      sizes: examples of each source.
      sources: their weights and epochs.

    """

    sizes: tuple[int, ...]
    weights: tuple[float | None, ...]
    epochs: tuple[float | None, ...]

    @classmethod
    def of(cls, sizes: Sequence[int], sources: Sequence[SourceConfig]) -> "Mixture":
        """The mixture that the sources' configs ask for."""
        weights = tuple(source.weight for source in sources)
        return cls(tuple(sizes), weights, tuple(source.epochs for source in sources))

    def shares(self) -> tuple[int, ...]:
        """Examples of each source in an epoch in which none has ended."""
        given = [weight for weight in self.weights if weight is not None]
        if not given or not any(self.sizes):
            return self.sizes
        weights = [weight or 0.0 for weight in self.weights]
        pairs = zip(self.sizes, weights, strict=True)
        passes = max(size / weight for size, weight in pairs if size)
        scaled = zip(self.sizes, weights, strict=True)
        return tuple(max(size, round(passes * weight)) if size else 0 for size, weight in scaled)

    def counts(self, epoch: int) -> tuple[int, ...]:
        """Examples of each source in this epoch; all 0 when the run is over."""
        left = []
        for size, share, epochs in zip(self.sizes, self.shares(), self.epochs, strict=True):
            total = None if epochs is None else max(1, round(epochs * size))
            left.append(share if total is None else min(share, max(0, total - epoch * share)))
        return tuple(left)


def interleave(
    source: Int[np.ndarray, " E"], counts: Sequence[int], *, seed: int, epoch: int, shuffle: bool
) -> Int[np.ndarray, " D"]:
    """The examples of an epoch in order, every source spread evenly over it.

    The k-th of a source's n draws stands at (k + 1/2) / n of the epoch. Each pass over a source is
    a permutation of its own.

    Args:
      source: each example's source.
      counts: draws from each source.
      seed: the run's seed.
      epoch: another epoch has another order.
      shuffle: False: the sources' own order, one source after the other.

    """
    draws, places = [], []
    for index, count in enumerate(counts):
        mine = np.flatnonzero(source == index)
        passes = -(-count // len(mine)) if len(mine) else 0
        chosen = [
            generator(seed, epoch, index, nth).permutation(mine) if shuffle else mine
            for nth in range(passes)
        ]
        draws.append(np.concatenate([*chosen, np.zeros(0, np.int64)])[:count])
        places.append(
            (np.arange(count) + 0.5) / max(count, 1) if shuffle else np.full(count, index)
        )
    order = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(draws)[order]


def generator(*seed: int) -> np.random.Generator:
    """A random generator that is a function of these numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([n % 2**63 for n in seed])))
