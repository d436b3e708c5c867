"""The value loss and its clip: numbers by hand, slopes, and where the gradient is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from ptjax.losses.value import explained_variance, value_clipped, value_loss

# near R; past the clip towards R; past the clip away from R; at R
OLD = jnp.array([0.0, 0.0, 0.0, 1.0])
VALUES = jnp.array([0.1, 0.5, 0.5, 1.0])
RETURNS = jnp.array([1.0, 1.0, -1.0, 1.0])


def test_numbers_by_hand():
    got = value_loss(VALUES, OLD, RETURNS, value_clip=0.2)
    np.testing.assert_allclose(got, [0.5 * 0.81, 0.5 * 0.64, 0.5 * 2.25, 0.0], rtol=1e-6)
    plain = value_loss(VALUES, OLD, RETURNS, value_clip=None)
    np.testing.assert_allclose(plain, [0.5 * 0.81, 0.5 * 0.25, 0.5 * 2.25, 0.0], rtol=1e-6)


def test_only_a_step_towards_the_return_is_clipped():
    slope = jax.grad(lambda v: jnp.sum(value_loss(v, OLD, RETURNS, value_clip=0.2)))(VALUES)
    np.testing.assert_allclose(slope, [-0.9, 0.0, 1.5, 0.0], atol=1e-6)
    clipped = value_clipped(VALUES, OLD, RETURNS, value_clip=0.2)
    np.testing.assert_array_equal(clipped, [0, 1, 0, 0])
    np.testing.assert_array_equal(value_clipped(VALUES, OLD, RETURNS, value_clip=None), 0)


def test_finite_differences():
    with jax.enable_x64(True):
        state = np.random.RandomState(0)
        old, returns = (jnp.asarray(state.standard_normal(40)) for _ in range(2))
        values = old + jnp.asarray(0.4 * state.standard_normal(40))
        for clip in (0.2, None):
            loss = functools.partial(value_loss, value_clip=clip)
            check_grads(jax.jit(loss), (values, old, returns), order=1, modes=["rev"])


def test_explained_variance():
    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    returns = jnp.array([1.0, 2.0, 6.0, 50.0])
    np.testing.assert_allclose(explained_variance(returns + 3, returns, weights), 1.0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(0 * returns, returns, weights), 0.0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(-returns, returns, weights), -3.0, atol=1e-5)
    half = explained_variance(jnp.array([1.0, 2.0, 3.0, 0.0]), returns, weights)
    np.testing.assert_allclose(half, 1 - np.var([0, 0, 3]) / np.var([1, 2, 6]), rtol=1e-6)
    assert explained_variance(returns, jnp.ones(4), weights) == 0
