"""Small updates of bfloat16 parameters: lost to the nearest, kept by both other ways."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ptjax.config.check import CHOICES
from ptjax.errors import UserError
from ptjax.models.spec import Param
from ptjax.optim import make_optimizer, state_shardings
from ptjax.optim.rounding import ROUNDINGS, nearest, stochastic

ROWS = {"layers.q": Param("layers embed -> heads"), "norm": Param("embed")}
PARAMS = {"layers.q": jnp.ones((2, 32, 64), jnp.bfloat16), "norm": jnp.ones(32, jnp.float32)}
TINY = 2.0**-12
"""An update of 1.0 whose sixteenth is half of what bfloat16 can tell there."""


def optimizer(rounding, seed=0):
    return make_optimizer(
        ROWS, lambda _: TINY, name="sgd", momentum=0.0, clip_norm=None, rounding=rounding, seed=seed
    )


def run(tx, params, state, count):
    grads = jax.tree.map(lambda p: jnp.full(p.shape, -1.0), params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda c: jax.lax.scan(step, c, length=count)[0])((params, state))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_small_updates(rounding):
    tx = optimizer(rounding)
    params, state = run(tx, PARAMS, tx.init(PARAMS), 256)
    moved = params["layers.q"].astype(jnp.float32) - 1
    assert params["layers.q"].dtype == jnp.bfloat16
    np.testing.assert_allclose(params["norm"], 1 + 256 * TINY, rtol=1e-6)
    wanted = 256 * TINY
    if rounding == "nearest":
        assert not moved.any()
    elif rounding == "kahan":
        left = moved + state.lost["layers.q"].astype(jnp.float32)
        np.testing.assert_allclose(left, wanted, rtol=2**-7)
        np.testing.assert_allclose(moved, wanted, atol=2.0**-7)
    else:
        assert moved.std() > 0
        np.testing.assert_allclose(moved.mean(), wanted, rtol=0.03)


def test_stochastic_rounding_is_unbiased_and_between_its_neighbours():
    x = jnp.float32([1.0, 1.001, -3.3, 1e-30, 65504.7, 2.0**-130, jnp.inf, jnp.nan])
    bits = jax.random.bits(jax.random.key(0), (4_000, 8), jnp.uint32)
    drawn = stochastic(jnp.broadcast_to(x, bits.shape), bits)
    assert jnp.all((drawn == nearest(drawn)) | jnp.isnan(drawn)), "bfloat16 numbers"
    ulp = 2.0 ** (np.floor(np.log2(np.abs(x[:5]))) - 7)
    assert (np.abs(drawn[:, :5] - x[:5]) < ulp).all()
    np.testing.assert_allclose(drawn[:, :5].mean(0), x[:5], rtol=2e-4)
    assert jnp.all(drawn[:, 0] == 1.0), "what bfloat16 can say stays"
    assert jnp.all(jnp.isinf(drawn[:, 6])) and jnp.all(jnp.isnan(drawn[:, 7]))


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_repeated_and_resumed_bit_for_bit(rounding):
    tx = optimizer(rounding)
    whole = run(tx, PARAMS, tx.init(PARAMS), 8)
    again = run(tx, *run(tx, PARAMS, tx.init(PARAMS), 4), 4)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    other, _ = run(optimizer(rounding, seed=1), PARAMS, tx.init(PARAMS), 8)
    assert jnp.array_equal(other["layers.q"], whole[0]["layers.q"]) == (rounding == "kahan")


def test_what_kahan_keeps_lies_with_its_parameter():
    tx = optimizer("kahan")
    at = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    shapes = {k: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=at) for k, p in PARAMS.items()}
    places = state_shardings(tx, shapes, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert places.lost == {"layers.q": at}


def test_names():
    assert CHOICES["optim.rounding"] == ROUNDINGS
    with pytest.raises(UserError, match="unknown 'kahn'; did you mean 'kahan'"):
        optimizer("kahn")
