"""Pooling = the plainest loop over sequences, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ptjax import sharding
from ptjax.ops.pooling import POOLINGS, pool

S, M, K, D = 2, 9, 4, 3
HIDDEN = jnp.asarray(np.random.RandomState(0).standard_normal((S, M, D)), jnp.float32)
# Sequence 2 of each shard has no token; rows are not in the order of the sequences.
OWNERS = jnp.array([[1, 1, 1, 0, 0, K, 3, 3, K], [3, K, K, 0, 1, 1, 1, 1, K]])


def naive(pooling):
    made = np.zeros((S, K, D), np.float32)
    for shard in range(S):
        for sequence in set(OWNERS[shard].tolist()) - {K}:
            own = np.asarray(HIDDEN)[shard][np.asarray(OWNERS)[shard] == sequence]
            made[shard, sequence] = own[-1] if pooling == "last" else own.mean(0)
    return made


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_sequence_on_its_own(pooling):
    got = pool(HIDDEN, OWNERS, K, pooling)
    np.testing.assert_allclose(got, naive(pooling), atol=1e-6)
    assert not got[:, 2].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients(pooling):
    def pooled(hidden):
        return pool(jnp.asarray(hidden), OWNERS, K, pooling)

    check_grads(pooled, (HIDDEN,), order=1, modes=["rev"], rtol=1e-2, atol=1e-2)
    gradient = jax.grad(lambda hidden: jnp.sum(pooled(hidden)))(HIDDEN)
    assert not gradient[OWNERS == K].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_bfloat16_is_pooled_in_float32(pooling):
    hidden = HIDDEN.astype(jnp.bfloat16)
    got = pool(hidden, OWNERS, K, pooling)
    assert got.dtype == jnp.float32
    wanted = pool(hidden.astype(jnp.float32), OWNERS, K, pooling)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_nothing_moves_between_devices(pooling):
    """Neither forward nor backward: each shard pools its own rows, however many there are."""
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    columns = {"hidden": np.tile(HIDDEN, (2, 1, 1)), "owners": np.tile(OWNERS, (2, 1))}
    columns = {name: np.asarray(column) for name, column in columns.items()}

    def both(hidden, owners):
        pooled, back = jax.vjp(lambda hidden: pool(hidden, owners, K, pooling), hidden)
        return pooled, back(pooled)[0]

    with jax.set_mesh(mesh):
        placed = sharding.put_batch(columns, mesh)
        run = jax.jit(both).lower(placed["hidden"], placed["owners"]).compile()
        pooled, gradient = run(placed["hidden"], placed["owners"])
    text = run.as_text()
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all") if word in text]
    np.testing.assert_allclose(pooled, np.tile(naive(pooling), (2, 1, 1)), atol=1e-6)
    assert np.abs(gradient).max() > 0
