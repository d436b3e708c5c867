"""One new token over a cache is the last one of whole attention, on one device and on eight."""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.ops import decode
from ptjax.ops.attention import attention
from ptjax.ops.ragged import listed
from ptjax.ops.span import Span
from tests import toy

R, S, K, G, E = 8, 384, 2, 3, 16
LENGTHS = np.array([255, 2, 1, 128, 129, 300, 257, 384])


def drawn(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


Q, KEYS, VALUES = (drawn(R, S, heads, E, seed=seed) for seed, heads in enumerate((K * G, K, K)))


@functools.cache
def whole(window, softcap):
    """Of the last token of each row, by the attention that training has."""
    places = jnp.broadcast_to(jnp.arange(S), (R, S))
    span = Span(places, (places < LENGTHS[:, None]).astype(jnp.int32))
    out = attention(
        *(Q, KEYS, VALUES, span, span, window), scale=0.3, softcap=softcap, aligned=True
    )
    return np.asarray(out)[np.arange(R), LENGTHS - 1]


def written(mesh, windows, softcap, *, dtype="float32", ended=(), unseen=None):
    """What `decode.extended` gives of each row's last token, for each window.

    What lies from a row's own slot on means nothing; what `unseen` chooses by window is not read.
    """
    rows, at, slots = np.arange(R), LENGTHS[:, None] - 1, np.arange(S)
    going = ~np.isin(rows, ended)
    q, new_k, new_v = (x[rows, at[:, 0]].astype(dtype) for x in (Q, KEYS, VALUES))
    # Of a row that has ended there may be no slot left.
    place = np.where(going, at[:, 0], S).astype(np.int32)

    @functools.partial(jax.jit, compiler_options=toy.QUICK)
    def run(*given):
        return decode.extended(*given, scale=0.3, softcap=softcap)

    def each(window):
        other = np.where(slots >= at, 1e3, 0.0)
        if unseen is not None:
            other = np.where(unseen(slots, at, window), np.nan, other)
        other = other[..., None, None]
        k, v = (jnp.where(other == 0, x, other).astype(dtype) for x in (KEYS, VALUES))
        return run(q, new_k, new_v, *decode.laid(k, v), place, going, jnp.int32(window))

    with nullcontext() if mesh is None else jax.set_mesh(sharding.make_mesh(mesh)):
        return [each(window) for window in windows]


def check_cache(k, v, going, window):
    """Every slot that a row sees holds its token, and those behind what they held."""
    for got, of, axis in ((k, KEYS, decode.KEYS), (v, VALUES, decode.values())):
        want = np.asarray(of.astype(got.dtype), np.float32)
        got = np.moveaxis(np.asarray(got, np.float32), axis, 1)
        for row in np.flatnonzero(going):
            end = LENGTHS[row]
            seen = slice(max(end - window, 0), end)
            np.testing.assert_array_equal(got[row, seen], want[row, seen])
            assert not (np.abs(got[row, end:]) < 900).any()


@pytest.mark.parametrize("mesh", [None, dict(fsdp=4, tensor=2), dict(data=2, tensor=4)])
@pytest.mark.parametrize(("window", "softcap"), [(1 << 30, None), (4, 2.0)])
def test_the_last_token_of_each_row(window, softcap, mesh):
    """With 4 devices of `tensor`, which do not divide 2 key heads, too."""
    ((out, k, v),) = written(mesh, [window], softcap)
    np.testing.assert_allclose(out, whole(window, softcap), rtol=2e-5, atol=2e-6)
    check_cache(k, v, np.ones(R, bool), window)


@pytest.mark.parametrize(
    ("mesh", "softcap", "dtype", "rounding"),
    [(dict(fsdp=4, tensor=2), 2.0, "float32", 1e-6), (None, None, "bfloat16", 0.02)],
)
def test_the_kernel_of_tpus(monkeypatch, mesh, softcap, dtype, rounding):
    """In Pallas' interpreter: full rows, rows of one token, rows that have ended, all of a device.

    Windows of nothing before, of less than a block, of more, and of all.
    """
    windows, ended = (1, 4, 150, 1 << 30), (0, 1, 5)
    monkeypatch.setattr(decode, "platform", lambda: "tpu")
    going = ~np.isin(np.arange(R), ended)

    def unseen(slots, at, window):
        """The other blocks of 128."""
        return (slots // 128 > at // 128) | (slots // 128 < (at - window + 1) // 128)

    made = written(mesh, windows, softcap, dtype=dtype, ended=ended, unseen=unseen)
    for window, (out, k, v) in zip(windows, made, strict=True):
        out, want = np.asarray(out, np.float32), whole(window, softcap)
        np.testing.assert_allclose(out[going], want[going], rtol=rounding, atol=rounding)
        check_cache(k, v, going, window)
        asked = np.asarray(Q[5, LENGTHS[5] - 1].astype(dtype), np.float32)
        np.testing.assert_array_equal(out[5], asked)  # a row that has ended is passed over


@pytest.mark.parametrize(
    ("window", "wanted"),
    [(1 << 30, [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (3, 0)]), (1, [(0, 2), (2, 1), (3, 0)])],
)
def test_the_grid_is_as_long_as_what_is_seen(window, wanted):
    """Of rows that have ended the first alone has turns, where there is no slot left too."""
    at, going = jnp.array([S, 300, 128, 127]), jnp.array([False, False, True, True])
    turns, count = listed(at, going, jnp.int32(window), S, 128)
    pairs = zip(turns.row.tolist(), turns.block.tolist(), strict=True)
    assert list(pairs)[: int(count)] == wanted
