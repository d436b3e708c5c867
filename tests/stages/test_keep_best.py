"""Which answers of a group stay: by hand, by sorting, and what of the others is left."""

import jax
import numpy as np
import pytest

from ptjax.data import HostBatch
from ptjax.sharding import make_mesh
from ptjax.stages.base import Context
from ptjax.stages.keep_best import best, keep_best
from ptjax.stages.rollout import Rollout

B, N, T = 4, 3, 8
REWARDS = np.float32([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [0.0, 7.0, 0.2], [0, 0, 0]])
WEIGHTS = np.float32([[1, 1, 1], [1, 1, 1], [2, 0, 2], [0, 0, 0]])  # one missing; one filler
LENGTHS = np.array([[5, 6, 7], [4, 4, 4], [8, 3, 6], [0, 0, 0]])
PROMPT = 2


def nothing(*_, **__):
    raise AssertionError("this stage asks the model nothing")


def run(*, training=True, truncated=None, **settings):
    valid = np.arange(T) < LENGTHS[..., None]
    columns = {
        "tokens": np.arange(B * N * T, dtype=np.int32).reshape(B, N, T),
        "valid": valid,
        "mask": (valid & (np.arange(T) >= PROMPT)).astype(np.float32),
        "weights": WEIGHTS.copy(),
        "rewards": REWARDS.copy(),
        "truncated": np.zeros((B, N), np.float32) if truncated is None else truncated,
        "pack": np.full((8, T), -1, np.int32),
    }
    rollout = object.__new__(Rollout)
    object.__setattr__(rollout, "accumulate", 1)
    object.__setattr__(rollout, "prompts_once", False)
    object.__setattr__(rollout, "max_tokens", 8)
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    host = HostBatch(dict(columns), [0, 1, 2, -1])
    ctx = Context(0, training, {}, nothing, nothing, nothing, mesh, host=host, rollout=rollout)
    given = {name: jax.numpy.asarray(column) for name, column in columns.items()}
    batch, carry = keep_best.run(ctx, given, None, **settings)
    assert carry is None
    return batch, ctx, columns


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        ({"keep": 2}, [[0, 1, 1], [1, 1, 0], [1, 0, 1]]),
        ({"keep": 9}, [[1, 1, 1], [1, 1, 1], [1, 0, 1]]),
        ({"keep": 9, "least": 0.3}, [[0, 1, 1], [1, 1, 1], [0, 0, 0]]),
        ({"least": 0.95}, [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ({"drop_no_signal": True}, [[0, 1, 0], [0, 0, 0], [0, 0, 1]]),
    ],
)
def test_those_that_stay_are_the_best(settings, kept):
    """A missing reward is not the best, however great a number stands there; fillers stay out."""
    kept = np.array([*kept, [0, 0, 0]])
    batch, ctx, before = run(**settings)
    np.testing.assert_array_equal(batch["weights"], WEIGHTS * kept)
    for name in ("valid", "mask"):
        np.testing.assert_array_equal(batch[name], before[name] * kept[..., None])
        np.testing.assert_array_equal(ctx.host.columns[name], batch[name])
    np.testing.assert_array_equal(batch["tokens"], before["tokens"])
    placed = np.sort(np.asarray(batch["pack"]).reshape(-1))
    wanted = np.flatnonzero(np.asarray(batch["valid"]))
    np.testing.assert_array_equal(placed[placed >= 0], wanted)


def test_truncated_answers_are_not_imitated_where_asked():
    """The best of the first prompt is cut, of the second all are."""
    cut = np.float32([[0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]])
    plain, _, _ = run(truncated=cut)
    np.testing.assert_array_equal(plain["weights"], run()[0]["weights"])
    batch, ctx, _ = run(truncated=cut, mask_truncated=True)
    kept = np.array([[0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(batch["weights"], WEIGHTS * kept)
    assert ctx.logged["keep/prompts"] == pytest.approx(2 / 3)
    assert ctx.logged["keep/answers"] == pytest.approx(2 / 8)


def test_answers_that_are_not_imitated_are_signal_all_the_same():
    """Of the first prompt one answer may be kept, and another has a different reward."""
    cut = np.float32([[0, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
    batch, *_ = run(truncated=cut, mask_truncated=True, drop_no_signal=True)
    kept = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(batch["weights"], WEIGHTS * kept)


def test_any_group_is_cut_as_sorting_would():
    draw = np.random.RandomState(3)
    rewards = draw.randint(0, 4, (200, 6)).astype(np.float32)
    there = draw.rand(200, 6) < 0.8
    for keep in (1, 2, 6):
        found = best(rewards, there, keep=keep)
        for row, (values, real) in enumerate(zip(rewards, there, strict=True)):
            order = sorted(np.flatnonzero(real), key=lambda i: (-values[i], i))
            assert np.flatnonzero(found[row]).tolist() == sorted(order[:keep])


def test_what_it_logs():
    _, ctx, _ = run()
    kept, all_rewards = [0.9, 0.3, 0.2], [0.1, 0.9, 0.5, 0.3, 0.3, 0.3, 0.0, 0.2]
    assert ctx.logged["keep/reward"] == pytest.approx(np.mean(kept))
    assert ctx.logged["keep/margin"] == pytest.approx(np.mean(kept) - np.mean(all_rewards))
    assert ctx.logged["keep/answers"] == pytest.approx(3 / 8)
    assert ctx.logged["keep/prompts"] == 1
    assert ctx.logged["keep/tokens"] == pytest.approx(np.mean([4, 2, 4]))
    _, ctx, _ = run(least=100.0)  # of nothing there is no mean
    assert ctx.logged == {"keep/answers": 0, "keep/prompts": 0}


def test_held_out_answers_stay():
    batch, ctx, before = run(training=False, least=100.0)
    assert not ctx.logged
    for name, column in before.items():
        np.testing.assert_array_equal(batch[name], column)
