import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptjax.data.packing import best_fit, pack_windows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 32), max_size=60), st.integers(1, 20))
def test_every_example_once_and_no_row_overfull(sizes, window):
    listed, begins = pack_windows(np.array(sizes, int), 32, window=window)
    assert sorted(listed.tolist()) == list(range(len(sizes)))
    rows = [listed[a:b] for a, b in zip(begins[:-1], begins[1:], strict=True)]
    assert all(0 < np.array(sizes, int)[row].sum() <= 32 for row in rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=60))
def test_it_is_best_fit_decreasing(sizes):
    left: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in left if room >= size]
        if fitting:
            left.remove(min(fitting))
            left.append(min(fitting) - size)
        else:
            left.append(32 - size)
    rows = best_fit(np.array(sizes), 32)
    mine = 32 - np.bincount(rows, np.array(sizes))
    assert sorted(mine.astype(int).tolist()) == sorted(left)


@pytest.mark.parametrize("middle, spread, capacity", [(5.5, 1, 1024), (5, 1, 2048), (6, 1, 4096)])
def test_rows_are_full_and_planning_is_quick(middle, spread, capacity):
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(middle, spread, 100_000).astype(int), 8, capacity)
    started = time.perf_counter()
    _, begins = pack_windows(sizes, capacity)
    assert sizes.sum() / ((len(begins) - 1) * capacity) > 0.995
    assert time.perf_counter() - started < 5
