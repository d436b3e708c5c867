"""Filters against plain numpy, frequencies against softmax, one stream a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptjax.generate import sampling as pure
from ptjax.generate.sampling import Sampling

V = 7
DRAWS = 20_000
draw, keep, top_k, top_p, min_p = map(
    jax.jit, (pure.draw, pure.keep, pure.top_k, pure.top_p, pure.min_p)
)
rows = st.lists(
    st.integers(-40, 40).map(lambda n: n / 8) | st.sampled_from([0.0, -0.0, -1e30, -jnp.inf]),
    min_size=V,
    max_size=V,
).filter(lambda row: max(row) > -1e29)
logits_of = rows.map(lambda row: jnp.array([row], jnp.float32))


def softmax(x):
    x = np.exp(np.asarray(x, np.float64) - np.max(x))
    return x / x.sum()


def kept(filtered):
    return set(np.flatnonzero(np.asarray(filtered)[0] > -np.inf).tolist())


def largest(logits, count):
    """Indices of the `count` largest and of all that tie with the last of them."""
    floor = np.sort(logits)[::-1][count - 1]
    return set(np.flatnonzero((logits >= floor) & (logits > -np.inf)).tolist())


@settings(max_examples=150, deadline=None)
@given(logits=logits_of, k=st.integers(1, V + 2))
def test_top_k_is_a_sort(logits, k):
    assert kept(top_k(logits, k)) == largest(np.asarray(logits[0]), min(k, V))


@settings(max_examples=150, deadline=None)
@given(logits=logits_of, p=st.integers(1, 100).map(lambda n: n / 101))
def test_top_p_is_the_smallest_set_that_reaches_p(logits, p):
    row = np.asarray(logits[0])
    sums = np.cumsum(np.sort(softmax(row))[::-1])
    if np.abs(sums - p).min() > 1e-5:
        assert kept(top_p(logits, p)) == largest(row, int((sums < p).sum()) + 1)


@settings(max_examples=150, deadline=None)
@given(logits=logits_of, p=st.integers(0, 10).map(lambda n: n / 10.03))
def test_min_p_is_relative_to_the_likeliest(logits, p):
    wanted = softmax(logits[0]) >= p * softmax(logits[0]).max()
    assert kept(min_p(logits, p)) == set(
        np.flatnonzero(wanted & np.isfinite(np.asarray(logits[0]))).tolist()
    )


@settings(max_examples=100, deadline=None)
@given(logits=logits_of, k=st.integers(1, V), p=st.floats(0.05, 1), floor=st.floats(0, 1))
def test_the_likeliest_stays_and_what_stays_is_unchanged(logits, k, p, floor):
    got = np.asarray(keep(logits, Sampling(1.0, k, p, floor)))[0]
    row = np.asarray(logits[0])
    assert np.argmax(row) in kept(got[None])
    stays = got > -np.inf
    np.testing.assert_array_equal(got[stays], row[stays])


def test_top_p_counts_what_top_k_left():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    assert kept(keep(logits, Sampling(1.0, None, 0.55))) == {0, 1}
    assert kept(keep(logits, Sampling(1.0, 2, 0.55))) == {0}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(3.0, 4),
        Sampling(1.0, None, 0.8),
        Sampling(2.0, None, None, 0.3),
        Sampling(2.0, 5, 0.9, 0.1),
    ],
)
def test_frequencies_are_those_of_the_filtered_softmax(sampling):
    logits = jax.random.normal(jax.random.key(1), (1, V)) * 1.5
    keys = jax.random.split(jax.random.key(2), DRAWS)
    tokens, logps = draw(jnp.tile(logits, (DRAWS, 1)), keys, sampling)
    heated = logits / sampling.temperature
    wanted = softmax(np.asarray(keep(heated, sampling))[0])
    counts = np.bincount(np.asarray(tokens), minlength=V)
    possible = wanted > 0
    assert counts[~possible].sum() == 0
    expected = DRAWS * wanted[possible]
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert chi_square < 30  # its 0.9999 quantile at 6 degrees of freedom is 27.9
    whole = np.log(softmax(heated[0]))
    np.testing.assert_allclose(logps, whole[np.asarray(tokens)], atol=1e-5)


def test_greedy_is_the_likeliest_with_its_log_probability():
    logits = jax.random.normal(jax.random.key(3), (5, V))
    tokens, logps = draw(logits, None, Sampling())
    np.testing.assert_array_equal(tokens, np.argmax(logits, -1))
    np.testing.assert_allclose(logps, jax.nn.log_softmax(logits).max(-1), atol=1e-6)


def test_a_row_knows_nothing_of_the_others():
    logits = jax.random.normal(jax.random.key(4), (6, V))
    keys = jax.random.split(jax.random.key(5), 6)
    sampling = Sampling(1.3, 5, 0.9, 0.05)
    together, logps = draw(logits, keys, sampling)
    for row in range(6):
        alone, logp = draw(logits[row : row + 1], keys[row : row + 1], sampling)
        assert alone[0] == together[row] and abs(logp[0] - logps[row]) < 1e-6


def test_new_numbers_compile_nothing():
    traced = []

    @jax.jit
    def counted(logits, keys, sampling):
        traced.append(sampling)
        return pure.draw(logits, keys, sampling)

    keys = jax.random.split(jax.random.key(0), 1)
    for sampling in [Sampling(0.5, 2), Sampling(0.7, 3), Sampling(1.0, 1)]:
        counted(jnp.zeros((1, V)), keys, sampling)
    assert len(traced) == 1
