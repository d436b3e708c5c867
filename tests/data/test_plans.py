import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptjax.data.packing import pack_windows
from ptjax.data.plan import Blocks
from ptjax.data.plan_batches import PackedBatches
from ptjax.data.plan_padded import PaddedBatches
from ptjax.data.plan_rows import PackedRows

LENGTH = 32
sizes_of = st.lists(st.integers(1, LENGTH), min_size=1, max_size=120).map(np.array)
seeds = st.sampled_from([None, 3])
blocks_of = st.sampled_from([Blocks(1, 1), Blocks(2, 1), Blocks(1, 2), Blocks(2, 2)])


def make(kind, sizes, blocks, seed):
    if kind is PaddedBatches:

        def orders(epoch):
            rng = np.random.default_rng(epoch)
            return rng.permutation(len(sizes)) if seed is not None else np.arange(len(sizes))

        return PaddedBatches(orders, sizes, batch=4, blocks=blocks, buckets=(8, 16, 32), seed=seed)
    count = {"rows": 4} if kind is PackedRows else {"batch": 4}
    order = np.arange(len(sizes))
    return kind(order, sizes, row_length=LENGTH, blocks=blocks, length=LENGTH, seed=seed, **count)


KINDS = [PackedRows, PackedBatches, PaddedBatches]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(sizes_of, blocks_of, seeds, st.integers(0, 3))
def test_an_epoch_holds_every_example_once_in_its_place(kind, sizes, blocks, seed, epoch):
    plan = make(kind, sizes, blocks, seed)
    seen = []
    for index in range(plan.steps):
        step = plan.step(epoch, index, plan.block)
        assert step.examples.shape == (blocks.shards, plan.block, blocks.accumulate)
        assert (step.rows, step.length) in plan.shapes
        real = step.examples >= 0
        seen += step.examples[real].tolist()
        assert (sizes[step.examples[real]] <= step.length).all()
        if kind is PaddedBatches:
            continue
        for shard, micro in np.ndindex(blocks.shards, blocks.accumulate):
            taken = np.zeros((step.rows, LENGTH), int)
            for place in np.flatnonzero(real[shard, :, micro]):
                at = shard, place, micro
                start, size = step.start[at], sizes[step.examples[at]]
                assert start + size <= LENGTH
                taken[step.row[at], start : start + size] += 1
            assert taken.max(initial=0) <= 1
    assert sorted(seen) == list(range(len(sizes)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(sizes_of, seeds)
def test_a_steps_examples_do_not_depend_on_its_blocks(kind, sizes, seed):
    def steps(blocks):
        plan = make(kind, sizes, blocks, seed)
        made = [plan.step(1, i, plan.block).examples.ravel() for i in range(plan.steps)]
        return [sorted(step[step >= 0].tolist()) for step in made]

    assert steps(Blocks(1, 1)) == steps(Blocks(2, 1)) == steps(Blocks(2, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_differ_with_a_seed_only(kind):
    sizes = np.random.default_rng(0).integers(1, LENGTH, 100)
    for seed, alike in ((3, False), (None, True)):
        plan = make(kind, sizes, Blocks(1, 1), seed)
        first, second = (
            [plan.step(epoch, i, plan.block).examples.tolist() for i in range(plan.steps)]
            for epoch in (0, 1)
        )
        assert (first == second) == alike


def test_steps_hold_nearly_as_many_examples():
    sizes = np.random.default_rng(0).integers(1, LENGTH // 2, 4000)
    plan = make(PackedRows, sizes, Blocks(1, 1), 0)
    counts = [(plan.step(0, i, plan.block).examples >= 0).sum() for i in range(plan.steps)]
    widest = np.diff(pack_windows(sizes, LENGTH)[1]).max()
    assert max(counts) <= plan.block <= np.median(counts) + widest
    assert plan.efficiency > 0.99


def test_padding_goes_to_like_lengths():
    sizes = np.random.default_rng(0).integers(1, LENGTH, 4000)
    assert make(PaddedBatches, sizes, Blocks(1, 1), 0).efficiency > 0.7
