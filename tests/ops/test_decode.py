"""One new token over a cache is the last one of whole attention, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.ops.attention import attention
from ptjax.ops.decode import cached
from ptjax.ops.span import Span

R, S, K, G, E = 8, 24, 2, 3, 16
LENGTHS = np.array([1, 2, 5, 9, 16, 17, 23, 24])


def drawn(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


Q, KEYS, VALUES = (drawn(R, S, heads, E, seed=seed) for seed, heads in enumerate((K * G, K, K)))


def whole(window, softcap):
    """Of the last token of each row, by the attention that training has."""
    places = jnp.broadcast_to(jnp.arange(S), (R, S))
    span = Span(places, (places < LENGTHS[:, None]).astype(jnp.int32))
    out = attention(
        *(Q, KEYS, VALUES, span, span, window), scale=0.3, softcap=softcap, aligned=True
    )
    return np.asarray(out)[np.arange(R), LENGTHS - 1]


@pytest.mark.parametrize("mesh", [None, dict(fsdp=4, tensor=2), dict(data=2, tensor=4)])
@pytest.mark.parametrize(("window", "softcap"), [(1 << 30, None), (4, 2.0)])
def test_the_last_token_of_each_row(window, softcap, mesh):
    """With 4 devices of `tensor`, which do not divide 2 key heads, too."""
    at = jnp.asarray(LENGTHS - 1)
    k = KEYS.at[jnp.arange(S) > at[:, None]].set(1e3)  # what lies behind means nothing
    given = (Q[jnp.arange(R), at], k.transpose(0, 2, 3, 1), VALUES.transpose(0, 2, 1, 3), at)

    @jax.jit
    def run(*given):
        return cached(*given, window, scale=0.3, softcap=softcap)

    if mesh is None:
        got = run(*given)
    else:
        with jax.set_mesh(sharding.make_mesh(mesh)):
            got = run(*given)
    np.testing.assert_allclose(got, whole(window, softcap), rtol=2e-5, atol=2e-6)
