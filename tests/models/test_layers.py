"""The parts of a layer that no reference model shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.models.layers import dropout

X = jnp.asarray(np.random.RandomState(0).uniform(1, 2, (200, 500)), jnp.float32)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_zeroes_its_share_and_scales_the_rest(rate):
    got = np.asarray(dropout(X, rate, jax.random.key(0)))
    kept = got != 0
    spread = np.sqrt(rate * (1 - rate) / X.size)
    assert abs((1 - kept.mean()) - rate) < 5 * spread
    np.testing.assert_allclose(got[kept], np.asarray(X)[kept] / (1 - rate), rtol=1e-6)
    # Entries fall one by one, not by rows or columns.
    for axis in (0, 1):
        assert np.abs(kept.mean(axis) - (1 - rate)).max() < 5 * spread * np.sqrt(X.shape[1 - axis])


def test_dropout_is_nothing_without_a_key_or_a_rate():
    assert dropout(X, 0.5, None) is X
    assert dropout(X, 0.0, jax.random.key(0)) is X


def test_dropout_keeps_the_dtype():
    assert dropout(X.astype(jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16
