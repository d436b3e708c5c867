"""Intervals of shares, and whether paired ones differ."""

import math
from collections.abc import Sequence

import numpy as np


def wilson(good: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, of 95% for z = 1.96 (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share, square = good / count, z * z
    center = (share + square / (2 * count)) / (1 + square / count)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    half /= 1 + square / count
    return max(0.0, center - half), min(1.0, center + half)


def by_cluster(
    right: Sequence[bool], cluster: Sequence[str], *, draws: int = 4000
) -> tuple[float, float]:
    """The percentile bootstrap's interval of a share, of 95%, of answers that hang together.

    Clusters are drawn, not answers: answers to one prompt are no independent ones (Field and Welsh
    2007).
    """
    _, which = np.unique(list(cluster), return_inverse=True)
    good, count = np.bincount(which, weights=list(right)), np.bincount(which)
    drawn = np.random.default_rng(0).integers(len(count), size=(draws, len(count)))
    low, high = np.quantile(good[drawn].sum(1) / count[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)


def sign_test(won: int, lost: int) -> float:
    """Two-sided p of so many wins and losses if each were as likely; ties left out.

    Of answers that are right or wrong this is McNemar's exact test (1947).
    """
    count = won + lost
    tail = sum(math.comb(count, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**count)
