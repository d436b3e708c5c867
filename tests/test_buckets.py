"""Sizes that are compiled for."""

import pytest

from ptjax.buckets import bucket


@pytest.mark.parametrize("least", [1, 16])
def test_buckets_are_few_and_never_half_empty(least):
    found = [bucket(size, least=least) for size in range(1, 1000)]
    assert all(size <= got for size, got in enumerate(found, 1))
    assert all(got < 2 * size for size, got in enumerate(found, 1) if size >= least)
    assert len(set(found)) < 22 and found == sorted(found)
