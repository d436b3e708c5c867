"""Tiles = a naive softmax over whole rows, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ptjax.models.config import GLOBAL_WINDOW
from ptjax.ops import tiles as module
from ptjax.ops.attention import attention
from ptjax.ops.span import Span
from tests.ops.spans import R, arrays, check, groups_of, naive, packed_span, rows_of

CASES = {
    "packed": dict(scale=0.3),
    "window": dict(scale=0.3, window=7),
    "softcap": dict(scale=0.8, softcap=1.5),
    "window and softcap": dict(scale=0.8, softcap=1.5, window=5),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_that_do_not_divide_a_row(case, monkeypatch):
    monkeypatch.setattr(module, "TILE", 16)
    settings = dict(CASES[case])
    window = settings.pop("window", GLOBAL_WINDOW)
    q, k, v, ways = arrays(37, 37)
    span = packed_span(37)
    ways = ways * (span.segments > 0)[..., None, None]
    run = functools.partial(attention, query=span, key=span, window=window, aligned=True)
    wanted = functools.partial(naive, query=span, key=span, window=window)
    check(lambda *x: run(*x, **settings), lambda *x: wanted(*x, **settings), q, k, v, ways)


@pytest.mark.parametrize("window", [GLOBAL_WINDOW, 6])
def test_queries_at_the_end_of_longer_keys(window):
    """As decoding does: the cache's slots are keys, some hold nothing."""
    q, k, v, ways = arrays(5, 30)
    segments = jnp.ones((R, 30), jnp.int32).at[0, :4].set(0)
    positions = jnp.maximum(jnp.cumsum(segments, 1) - 1, 0)
    key = Span(positions, segments.at[:, 25:].set(0))
    query = Span(positions[:, 20:25], segments[:, 20:25])
    run = functools.partial(attention, query=query, key=key, window=window, scale=0.3)
    wanted = functools.partial(naive, query=query, key=key, window=window, scale=0.3)
    check(lambda *x: run(*x, aligned=False), wanted, q, k, v, ways)


def test_one_block_is_many(monkeypatch):
    q, k, v, _ = arrays(40, 40)
    span = packed_span(40)
    run = functools.partial(attention, scale=0.3, aligned=True)
    whole = run(q, k, v, span, span, 9)
    monkeypatch.setattr(module, "TILE", 8)
    np.testing.assert_allclose(run(q, k, v, span, span, 9), whole, atol=1e-6)


def test_a_traced_window_is_a_static_one():
    q, k, v, _ = arrays(12, 12)
    span = packed_span(12)
    run = jax.jit(lambda w: attention(q, k, v, span, span, w, scale=0.3, aligned=True))
    np.testing.assert_array_equal(run(jnp.int32(3)), run(3))
    assert not np.allclose(run(3), run(4))


def test_rows_of_padding_are_finite():
    q, k, v, _ = arrays(9, 9)
    nothing = Span(jnp.zeros((R, 9), jnp.int32), jnp.zeros((R, 9), jnp.int32))
    unseen = Span(nothing.positions, nothing.segments + 3)

    def total(q, key, aligned):
        return jnp.sum(attention(q, k, v, nothing, key, 4, scale=1.0, aligned=aligned))

    for key, aligned in ((nothing, True), (unseen, False)):
        value, gradient = jax.value_and_grad(total)(q, key, aligned)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_finite_differences():
    q, k, v, _ = arrays(10, 10)
    span = packed_span(10)

    @jax.jit
    def run(q, k, v, window):
        return attention(q, k, v, span, span, window, scale=0.5, softcap=2.0, aligned=True)

    check_grads(lambda *x: run(*x, 4), (q, k, v), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_bfloat16_stays_near_float32():
    q, k, v, _ = arrays(24, 24)
    span = packed_span(24)
    run = functools.partial(attention, query=span, key=span, window=99, scale=0.3, aligned=True)
    low = run(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), run(q, k, v), atol=0.04)


@pytest.mark.parametrize("window", [GLOBAL_WINDOW, 11])
def test_rows_of_many_sequences_over_many_tiles(window, monkeypatch):
    monkeypatch.setattr(module, "TILE", 8)
    span = rows_of([3, 20, 9, 16, 8, 5], [64], [1, 1, 30, 31])
    span = jax.tree.map(lambda x: x[:R] if window == 11 else x[-R:], span)
    q, k, v, ways = arrays(64, 64)
    ways = ways * (span.segments > 0)[..., None, None]
    run = functools.partial(attention, query=span, key=span, window=window, scale=0.4, aligned=True)
    wanted = functools.partial(naive, query=span, key=span, window=window, scale=0.4)
    check(run, wanted, q, k, v, ways)


@pytest.mark.parametrize("window", [GLOBAL_WINDOW, 11])
def test_answers_share_their_prompt(window, monkeypatch):
    """Over many tiles, and as if each answer stood alone behind a prompt of its own."""
    monkeypatch.setattr(module, "TILE", 8)
    rows = [[(13, 9, 2, 20), (1, 5, 1), (6, 8)], [(30, 1, 1, 1, 31)]]
    span = groups_of(*rows)
    q, k, v, ways = arrays(65, 65)
    run = functools.partial(attention, query=span, key=span, window=window, scale=0.4, aligned=True)
    wanted = functools.partial(naive, query=span, key=span, window=window, scale=0.4)
    check(run, wanted, q, k, v, ways * (span.segments > 0)[..., None, None])
    out = run(q, k, v)

    @jax.jit
    def single(q, k, v, segments):
        span = Span(jnp.arange(65)[None], segments)
        return attention(q, k, v, span, span, window, scale=0.4, aligned=True)

    for row, groups in enumerate(rows):
        at = 0
        for prompt, *answers in groups:
            own = np.arange(at, at + prompt)
            at += prompt
            for answer in answers:
                both = np.append(own, np.arange(at, at + answer))
                padded = np.append(both, np.full(65 - len(both), at))
                segments = jnp.asarray(np.arange(65) < len(both), jnp.int32)[None]
                got = single(*(x[row : row + 1, padded] for x in (q, k, v)), segments)
                np.testing.assert_allclose(
                    out[row, both[prompt:]], got[0, prompt : len(both)], atol=1e-5
                )
                at += answer


@pytest.mark.parametrize(
    ("span", "window", "bad", "read"),
    [
        (rows_of([20, 12, 32], [19, 13, 32]), GLOBAL_WINDOW, 32, 32),  # tiles of other sequences
        (rows_of([64], [64]), 9, 24, 32),  # tiles before the window
    ],
)
def test_tiles_that_no_query_sees_are_never_read(span, window, bad, read, monkeypatch):
    """NaN may stand there, as 0 · NaN would show; the others' results keep their bits."""
    monkeypatch.setattr(module, "TILE", 8)
    q, k, v, ways = arrays(64, 64)
    run = functools.partial(attention, query=span, key=span, window=window, scale=0.4, aligned=True)

    def last(k, v):
        out, vjp = jax.vjp(lambda q, k, v: run(q, k, v)[:, read:], q, k, v)
        d_q, d_k, d_v = vjp(ways[:, read:])
        return out, d_q[:, read:], d_k[:, read:], d_v[:, read:]

    wanted = last(k, v)
    nans = [x.at[:, :bad].set(jnp.nan) for x in (k, v)]
    for a, b in zip(last(*nans), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
