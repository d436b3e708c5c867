"""One new token over a cache is the last one of whole attention, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.ops import decode
from ptjax.ops.attention import attention
from ptjax.ops.span import Span
from tests import toy

R, S, K, G, E = 8, 256, 2, 3, 16
LENGTHS = np.array([255, 2, 1, 128, 129, 200, 127, 256])


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


def written(mesh, windows, softcap, *, dtype="float32", ended=()):
    """What `decode.extended` gives of each row's last token, for each window."""
    rows, at = jnp.arange(R), jnp.asarray(LENGTHS - 1)
    going = ~jnp.isin(rows, jnp.asarray(ended, jnp.int32))
    # What lies from a row's own slot on means nothing.
    k, v = (x.at[jnp.arange(S) >= at[:, None]].set(1e3) for x in (KEYS, VALUES))
    q, new_k, new_v, k, v = (
        x.astype(dtype) for x in (*(x[rows, at] for x in (Q, KEYS, VALUES)), *decode.laid(k, v))
    )

    @functools.partial(jax.jit, compiler_options=toy.QUICK)
    def run(*given):
        return decode.extended(*given, scale=0.3, softcap=softcap)

    def each():
        # Of a row that has ended there may be no slot left.
        place = jnp.where(going, at, S)
        return [run(q, new_k, new_v, k, v, place, going, jnp.int32(w)) for w in windows]

    if mesh is None:
        return each()
    with jax.set_mesh(sharding.make_mesh(mesh)):
        return each()


def check_cache(k, v, going):
    """Every slot up to a row's own holds its token, and the next one what it held."""
    for got, of, axis in ((k, KEYS, decode.KEYS), (v, VALUES, decode.values())):
        got = np.asarray(jnp.moveaxis(got, axis, 1), np.float32)
        want = np.asarray(of.astype(k.dtype), np.float32)
        for row in np.flatnonzero(going):
            at = LENGTHS[row]
            np.testing.assert_array_equal(
                got[row, :at].reshape(at, -1), want[row, :at].reshape(at, -1)
            )
            assert (np.abs(got[row, at:]) > 900).all()


@pytest.mark.parametrize("mesh", [None, dict(fsdp=4, tensor=2), dict(data=2, tensor=4)])
@pytest.mark.parametrize(("window", "softcap"), [(1 << 30, None), (4, 2.0)])
def test_the_last_token_of_each_row(window, softcap, mesh):
    """With 4 devices of `tensor`, which do not divide 2 key heads, too."""
    ((out, k, v),) = written(mesh, [window], softcap)
    np.testing.assert_allclose(out, whole(window, softcap), rtol=2e-5, atol=2e-6)
    check_cache(k, v, np.ones(R, bool))


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
    for window, (out, k, v) in zip(
        windows, written(mesh, windows, softcap, dtype=dtype, ended=ended), strict=True
    ):
        want = whole(window, softcap)[going]
        np.testing.assert_allclose(out[going], want, rtol=rounding, atol=rounding)
        check_cache(k, v, going)
