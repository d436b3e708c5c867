"""Intervals of shares."""

import math


def wilson(good: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, of 95% for z = 1.96 (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share, square = good / count, z * z
    center = (share + square / (2 * count)) / (1 + square / count)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    half /= 1 + square / count
    return max(0.0, center - half), min(1.0, center + half)
