"""A reference that follows the policy: when, and how far."""

import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.sharding import make_mesh
from ptjax.stages.base import Context
from ptjax.stages.reference import copied, iterated_reference, synced_reference


def followed(step, *, stage=synced_reference, training=True, **hparams):
    """Where a leaf of 1 and one of -2 stand, the policy's being at 2 and 8."""

    def unasked(*args, **named):
        raise AssertionError("a mix of weights asks no model")

    trained = {"up": jnp.array([2.0]), "down": jnp.array([8.0], jnp.bfloat16)}
    passes = {"policy": unasked, "reference": unasked, "model": unasked}
    context = Context(step, training, trained, **passes, mesh=make_mesh({"fsdp": 8}))
    carry = {"up": jnp.array([1.0]), "down": jnp.array([-2.0], jnp.bfloat16)}
    batch, carry = stage.run(context, {}, carry, sync_every=4, **hparams)
    assert batch == {} and carry["down"].dtype == jnp.bfloat16
    return float(carry["up"][0]), float(carry["down"][0])


@pytest.mark.parametrize("step", [4, 8])
def test_it_goes_a_part_of_the_way(step):
    assert followed(step) == pytest.approx((0.6 * 2 + 0.4 * 1, 0.6 * 8 + 0.4 * -2))
    assert followed(step, sync_alpha=0.25) == pytest.approx((1.25, 0.5))
    assert followed(step, stage=iterated_reference) == (2, 8)


@pytest.mark.parametrize(("step", "training"), [(0, True), (3, True), (5, True), (4, False)])
def test_it_stays_between_two_and_for_held_out_data(step, training):
    assert followed(step, training=training) == (1, -2)


def test_it_begins_as_a_copy():
    trained = {"up": jnp.array([2.0])}
    made = copied(trained)
    np.testing.assert_array_equal(made["up"], trained["up"])
    assert made["up"] is not trained["up"]
