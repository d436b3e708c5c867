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


def columns(valid, tokens=None):
    """Answers that are trained as a whole, so that nothing is shared."""
    tokens = np.zeros(valid.shape, np.int32) if tokens is None else tokens
    return {"tokens": tokens, "valid": valid, "mask": valid.astype(np.float32)}


def blocks_of(pack, blocks):
    """The packed rows of each (shard, micro-batch), as `ptjax.types` lays them out."""
    shards, micros = blocks
    return pack.reshape(shards, -1, micros, pack.shape[1]).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("empty", [0.0, 0.5])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 1), (1, 4), (4, 2)], ids=str)
def test_packed_is_unpacked(blocks, empty):
    shards, micros = blocks
    valid = ragged(16, 3, seed=shards + 10 * micros, empty=empty)
    pack = pack_groups(columns(valid), Blocks(shards, micros), prompts_once=False)
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


@pytest.mark.parametrize("count", [16, 24])
def test_groups_that_do_not_divide_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} groups do not divide"):
        pack_groups(columns(ragged(count, 2, seed=0)), Blocks(8, 4), prompts_once=False)


def test_all_blocks_have_as_many_rows_as_the_fullest_rounded_up():
    valid = np.zeros((8, 4, LENGTH), bool)
    valid[:4, 0, :3] = True  # a shard of few tokens
    valid[4:, :, :9] = True  # and one whose 16 answers do not go two to a row
    pack = pack_groups(columns(valid), Blocks(2, 1), prompts_once=False)
    assert pack.shape == (2 * 16, LENGTH)
    few, many = blocks_of(pack, (2, 1))[:, 0]
    assert (few >= 0).any(1).sum() == 1 and (many >= 0).any(1).sum() == 16
    valid[4:, 2:] = False
    valid[4, 2, :9] = True  # 9 rows are 12
    assert len(pack_groups(columns(valid), Blocks(2, 1), prompts_once=False)) == 2 * 12


@pytest.mark.parametrize("seed", range(6))
def test_few_numbers_of_rows_occur_and_none_is_wasteful(seed):
    valid = ragged(12, 4, seed, longest=7)
    pack = pack_groups(columns(valid), Blocks(2, 1), prompts_once=False)
    rows = len(pack) // 2
    assert rows in BUCKETS
    fullest = max(valid[:6].sum(), valid[6:].sum())
    assert rows * LENGTH < 2 * 1.5 * fullest


def test_two_hundred_ragged_rollouts_have_few_shapes():
    """Each is a compilation of the optimizer step, prompts shared or not."""
    draw, shapes = np.random.default_rng(0), set()
    for seed in range(200):
        valid = ragged(16, 8, seed, longest=int(draw.integers(3, LENGTH + 1)), empty=seed % 2 / 4)
        given = columns(valid)
        given["mask"] *= np.arange(LENGTH) >= draw.integers(0, 9)
        pack = pack_groups(given, Blocks(2, 2), prompts_once=True, answer=LENGTH // 2)
        shapes.add(pack.shape)
    assert {width for _, width in shapes} > {LENGTH}
    assert len(shapes) <= 12


def test_nothing_at_all_is_one_empty_row():
    pack = pack_groups(columns(np.zeros((4, 2, LENGTH), bool)), Blocks(2, 2), prompts_once=False)
    assert pack.shape == (4, LENGTH) and (pack == -1).all()


def groups(rows, n, length, seed, *, empty=0.0):
    """Groups of ragged answers to prompts of 1 to 7 tokens, some answers not there."""
    draw = np.random.default_rng(seed)
    prompts, answers = draw.integers(1, 8, (rows, 1)), draw.integers(1, 9, (rows, n))
    lengths = (prompts + answers) * (draw.random((rows, n)) >= empty)
    place = np.arange(length)
    valid = place < lengths[..., None]
    asked = place < prompts[..., None]
    tokens = draw.integers(1, 99, (rows, n, length))
    tokens = np.where(asked, tokens[:, :1], tokens)
    mask = (valid & ~asked).astype(np.float32)
    return prompts[:, 0], {"tokens": tokens, "valid": valid, "mask": mask}


@pytest.mark.parametrize("empty", [0.0, 0.4])
@pytest.mark.parametrize("blocks", [(1, 1), (4, 2)], ids=str)
def test_a_prompt_stands_once_before_a_run_of_its_answers(blocks, empty):
    shards, micros = blocks
    n = 6
    prompts, made = groups(16, n, LENGTH, seed=3, empty=empty)
    pack = pack_groups(made, Blocks(shards, micros), prompts_once=True)
    assert pack.shape[1] in (LENGTH, LENGTH * 4)
    seen = np.zeros(made["valid"].shape, int)
    per = 16 // (shards * micros)
    for (shard, micro, _), row in zip(
        np.ndindex(blocks_of(pack, blocks).shape[:3]),
        blocks_of(pack, blocks).reshape(-1, pack.shape[1]),
        strict=True,
    ):
        before = None
        for index in row[row >= 0].tolist():
            place, rest = divmod(index, n * LENGTH)
            k, t = divmod(rest, LENGTH)
            b = (shard * per + place) * micros + micro
            seen[b, k, t] += 1
            if before != (b, k, t - 1):  # another sequence: whole, or behind its group's prompt
                assert t == 0 or (before[0] == b and t == prompts[b] - 1)
            before = (b, k, t)
    trained = made["mask"] > 0
    assert (seen[trained] == 1).all() and not seen[~made["valid"]].any()
    assert seen.sum() < made["valid"].sum()


def test_what_is_shared_ends_before_the_first_trained_token_and_where_tokens_differ():
    def made():
        valid = np.ones((16, 4, LENGTH), bool)
        mask = np.ones(valid.shape, np.float32) * (np.arange(LENGTH) >= 12)
        return {"tokens": np.zeros(valid.shape, np.int32), "valid": valid, "mask": mask}

    def used(columns):
        return int((pack_groups(columns, Blocks(1, 1), prompts_once=True) >= 0).sum())

    whole = 16 * 4 * LENGTH
    assert used(made()) == whole - 16 * 3 * 11
    other = made()
    other["tokens"][:, 1, 0] += 1  # one answer to another prompt
    assert used(other) == whole
    other = made()
    other["tokens"][:, 1, 6] += 1  # alike up to there
    assert used(other) == whole - 16 * 3 * 5
    other = made()
    other["mask"][:, 2, 0] = 1
    assert used(other) == whole


def test_rows_are_as_long_as_takes_the_fewest_tokens():
    """Two short answers to one prompt do not open a row of four times the longest."""
    _, made = groups(1, 2, LENGTH, seed=5)
    assert pack_groups(made, Blocks(1, 1), prompts_once=True).size <= 2 * LENGTH


def test_a_group_too_long_for_a_row_begins_again_with_its_prompt():
    valid = np.ones((1, 9, LENGTH), bool)
    mask = np.ones(valid.shape, np.float32) * (np.arange(LENGTH) >= 6)
    tokens = np.zeros(valid.shape, np.int32)
    pack = pack_groups(
        {"tokens": tokens, "valid": valid, "mask": mask}, Blocks(1, 1), prompts_once=True
    )
    # 64 = 16 + 4 x 11 + 4: five answers, then four
    assert (pack >= 0).sum(1).tolist() == [16 + 4 * 11, 16 + 3 * 11]


def test_a_row_may_be_as_long_as_the_largest_group():
    """Eight answers of 64 tokens to a prompt of 64 go into no row of four times 128."""
    valid = np.ones((2, 8, 128), bool)
    mask = np.ones(valid.shape, np.float32) * (np.arange(128) >= 64)
    made = {"tokens": np.zeros(valid.shape, np.int32), "valid": valid, "mask": mask}
    repeated, cut, whole = (
        pack_groups(made, Blocks(1, 2), prompts_once=once, answer=answer)
        for once, answer in ((False, 64), (True, None), (True, 64))
    )
    assert repeated.size == cut.size == 2 * 8 * 128
    assert whole.shape == (2, 640)
    assert ((whole >= 0).sum(1) == 128 + 7 * 65).all()
