"""Means add exactly and read nothing of weight 0; states may be abstract."""

import jax
import jax.numpy as jnp
import numpy as np

from ptjax.types import Derived, Mean, TrainState, tree_bytes


def test_parts_of_a_mean_add_up():
    values, weights = jnp.arange(6.0), jnp.array([1.0, 0, 2, 0, 0.5, 1])
    whole = Mean.of(values, weights)
    parts = sum(
        (Mean.of(values[i : i + 2], weights[i : i + 2]) for i in (2, 4)),
        Mean.of(*[x[:2] for x in (values, weights)]),
    )
    assert whole.value() == parts.value() == (2 * 2 + 0.5 * 4 + 5) / 4.5


def ratio(one, other):
    return one / other


def test_parts_of_what_follows_from_means_add_up():
    values, weights = jnp.arange(1.0, 7), jnp.array([1.0, 0, 2, 0, 0.5, 1])
    parts = [
        Derived.from_means(ratio, Mean.of(values[part], weights[part]), Mean.of(values[part], one))
        for part, one in ((slice(2), jnp.ones(2)), (slice(2, 6), jnp.ones(4)))
    ]
    wanted = (1 + 3 * 2 + 5 * 0.5 + 6) / 4.5 / 3.5
    np.testing.assert_allclose((parts[0] + parts[1]).value(), wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.tree.map(jnp.add, *parts).value(), wanted, rtol=1e-6)


def test_what_has_no_weight_is_not_read():
    values = jnp.array([1.0, jnp.nan, jnp.inf])
    weights = jnp.array([2.0, 0, 0])
    assert Mean.of(values, weights).value() == 1
    gradient = jax.grad(lambda v: Mean.of(v, weights).value())(values)
    np.testing.assert_array_equal(gradient, [1, 0, 0])


def test_the_mean_of_nothing_is_zero():
    assert Mean.of(jnp.ones(3), jnp.zeros(3)).value() == 0


def test_a_mean_of_a_nan_is_a_nan():
    assert jnp.isnan(Mean.of(jnp.array([jnp.nan, 1]), jnp.ones(2)).value())


def test_states_and_means_may_be_abstract():
    state = TrainState(jnp.int32(0), {"a": jnp.ones(3)}, {"b": jnp.ones(2)}, (), {})
    shapes = jax.eval_shape(lambda s: s, state)
    assert shapes.params["a"].shape == (3,)
    assert jax.eval_shape(Mean.of, jnp.ones(3), jnp.ones(3)).total.shape == ()
    assert set(state.merged()) == {"a", "b"}


def test_bytes_of_a_tree():
    assert tree_bytes({"a": jnp.ones((3, 2)), "b": [jnp.ones(5, jnp.bfloat16)]}) == 34
