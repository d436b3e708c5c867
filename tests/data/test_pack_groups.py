"""Packing of sampled answers: every token stands once, in its own block, in one stretch."""

import numpy as np
import pytest

from ptjax.data.pack_groups import pack_groups
from ptjax.data.plan import Blocks

LENGTH = 16
BUCKETS = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64}


def ragged(rows, n, seed, longest=LENGTH, empty=0.0):
    """`valid` of answers of random lengths, of which a share is not there."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, (rows, n)) * (draw.random((rows, n)) >= empty)
    return np.arange(LENGTH) < lengths[..., None]


def blocks_of(pack, blocks):
    """The packed rows of each (shard, micro-batch), as `ptjax.types` lays them out."""
    shards, micros = blocks
    return pack.reshape(shards, -1, micros, pack.shape[1]).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("empty", [0.0, 0.5])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 1), (1, 4), (4, 2)], ids=str)
def test_packed_is_unpacked(blocks, empty):
    shards, micros = blocks
    valid = ragged(16, 3, seed=shards + 10 * micros, empty=empty)
    pack = pack_groups(valid, Blocks(shards, micros))
    per = len(valid) // (shards * micros)
    seen = np.zeros(valid.shape, int)
    where = {}
    for (shard, micro, row), packed in zip(
        np.ndindex(blocks_of(pack, blocks).shape[:3]),
        blocks_of(pack, blocks).reshape(-1, LENGTH),
        strict=True,
    ):
        for column, index in enumerate(packed.tolist()):
            if index < 0:
                continue
            place, rest = divmod(index, 3 * LENGTH)
            n, t = divmod(rest, LENGTH)
            b = (shard * per + place) * micros + micro
            seen[b, n, t] += 1
            where.setdefault((b, n), []).append((row, column - t))
    np.testing.assert_array_equal(seen, valid)
    assert all(len({*places}) == 1 for places in where.values())


def test_all_blocks_have_as_many_rows_as_the_fullest_rounded_up():
    valid = np.zeros((8, 4, LENGTH), bool)
    valid[:4, 0, :3] = True  # a shard of few tokens
    valid[4:, :, :9] = True  # and one whose 16 answers do not go two to a row
    pack = pack_groups(valid, Blocks(2, 1))
    assert pack.shape == (2 * 16, LENGTH)
    few, many = blocks_of(pack, (2, 1))[:, 0]
    assert (few >= 0).any(1).sum() == 1 and (many >= 0).any(1).sum() == 16
    valid[4:, 2:] = False
    valid[4, 2, :9] = True  # 9 rows are 12
    assert len(pack_groups(valid, Blocks(2, 1))) == 2 * 12


@pytest.mark.parametrize("seed", range(6))
def test_few_numbers_of_rows_occur_and_none_is_wasteful(seed):
    valid = ragged(12, 4, seed, longest=7)
    pack = pack_groups(valid, Blocks(2, 1))
    rows = len(pack) // 2
    assert rows in BUCKETS
    fullest = max(valid[:6].sum(), valid[6:].sum())
    assert rows * LENGTH < 2 * 1.5 * fullest


def test_nothing_at_all_is_one_empty_row():
    pack = pack_groups(np.zeros((4, 2, LENGTH), bool), Blocks(2, 2))
    assert pack.shape == (4, LENGTH) and (pack == -1).all()
