"""Best-fit decreasing bin packing of examples into rows."""

import numpy as np
from jaxtyping import Int

WINDOW = 16384
"""Examples that are packed together: enough for rows 99.5 % full, few enough to stay mixed."""


def best_fit(sizes: Int[np.ndarray, " E"], capacity: int) -> Int[np.ndarray, " E"]:
    """The row that each example goes to, rows counted from 0.

    Longest first, each into the fullest row it fits in (best-fit decreasing; Johnson 1973). Rows
    are found by what is left in them: bit c of `open_` says whether a row with c left exists, so a
    placement costs one shift of a number of `capacity` bits.

    Args:
      sizes: tokens of each example, 1 to capacity.
      capacity: tokens of a row.

    """
    rows = np.empty(len(sizes), np.int64)
    by_left: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_, made = 0, 0
    for example in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[example])
        fitting = open_ >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            row = by_left[left].pop()
            if not by_left[left]:
                open_ ^= 1 << left
            left -= size
        else:
            row, left = made, capacity - size
            made += 1
        rows[example] = row
        if left:
            by_left[left].append(row)
            open_ |= 1 << left
    return rows


def pack_windows(
    sizes: Int[np.ndarray, " E"], capacity: int, *, window: int = WINDOW
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " R1"]]:
    """Packs examples window by window, in the order they come.

    Returns:
      The examples row by row, and where in that list each row begins (and the last one ends).

    """
    listed, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(sizes), window):
        rows = best_fit(sizes[start : start + window], capacity)
        listed.append(start + np.argsort(rows, kind="stable"))
        counts.append(np.bincount(rows))
    ends = np.cumsum(np.concatenate(counts))
    return np.concatenate(listed), np.concatenate([[0], ends])
