"""InfoNCE on arrays: torch's values and gradients, missing texts, closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.losses.contrastive import info_nce, similarities
from ptjax.types import Mean
from tests.losses.checks import GOLDEN, Table, given, rows

CASES = GOLDEN["cases"]["contrastive"]


def means(embeddings, frozen):
    present = given("present", embeddings.dtype)

    def mean(*, negatives, **settings):
        texts = 2 + negatives
        return info_nce(similarities(embeddings[:, :texts], present[:, :texts], **settings)).mean()

    return {name: mean(**case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def table():
    return Table(means, GOLDEN["embeddings"])


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_torchs(table, case):
    table.check_golden(case, rtol=1e-9)


def test_finite_differences_in_float64(table):
    table.check_finite_differences()


def test_float32_is_close(table):
    table.check_float32()


def test_bfloat16_is_within_its_rounding(table):
    table.check_bfloat16()


def batch(count=5, texts=3, size=8):
    state = np.random.RandomState(2)
    return jnp.asarray(state.standard_normal((count, texts, size)), jnp.float32)


@partial(jax.jit, static_argnames="in_batch")
def losses(embeddings, weights, in_batch=True):
    return info_nce(similarities(embeddings, weights, in_batch=in_batch))


def test_equal_texts_cannot_be_told_apart():
    same = jnp.ones((4, 3, 2))
    ones = jnp.ones((4, 3))
    np.testing.assert_allclose(losses(same, ones), np.log(8), rtol=1e-6)
    np.testing.assert_allclose(losses(same, ones, in_batch=False), np.log(2), rtol=1e-6)


def test_own_negatives_alone_are_a_batch_of_one():
    """Without in-batch negatives rows do not couple; with them they do."""
    embeddings, ones = batch(), jnp.ones((5, 3))
    alone = np.concatenate([losses(x[None], ones[:1]) for x in embeddings])
    own = losses(embeddings, ones, in_batch=False)
    np.testing.assert_allclose(alone, own, rtol=1e-5)
    assert (np.asarray(losses(embeddings, ones)) > own).all()


def test_length_order_and_missing_texts_do_not_matter():
    embeddings, ones = batch(), jnp.ones((5, 3))
    whole = np.asarray(losses(embeddings, ones))
    scaled = embeddings * jnp.arange(1.0, 16).reshape(5, 3, 1)
    np.testing.assert_allclose(losses(scaled, ones), whole, rtol=1e-4)
    order = np.array([3, 0, 4, 2, 1])
    moved = losses(embeddings[order], ones)
    np.testing.assert_allclose(moved, whole[order], rtol=1e-5)

    wide, weights = np.zeros((7, 5, 8), np.float32), np.zeros((7, 5), np.float32)
    wide[1:6, :3], weights[1:6, :3] = embeddings, 1
    values, gradients = rows(losses)(wide, weights)
    np.testing.assert_allclose(values[1:6], whole, rtol=1e-5)
    assert values[0] == values[6] == 0 and np.isfinite(gradients).all()
    own = rows(lambda x, w: info_nce(similarities(x, w, in_batch=False)))(wide, weights)
    assert own[0][0] == own[0][6] == 0 and np.isfinite(own[1]).all()
    mean = Mean.of(values, jnp.asarray(weights[:, 0])).value()
    np.testing.assert_allclose(mean, whole.mean(), rtol=1e-5)


def test_the_positive_of_a_query_is_its_own_column():
    """So that accuracy is how often the largest similarity of row i is in column i."""
    embeddings = batch(4, 3)
    embeddings = embeddings.at[:, 1].set(2 * embeddings[:, 0])
    x = similarities(embeddings, jnp.ones((4, 3)))
    assert x.shape == (4, 8)
    np.testing.assert_array_equal(jnp.argmax(x, -1), jnp.arange(4))
    np.testing.assert_allclose(jnp.diagonal(x), 20, rtol=1e-5)
