"""Losses of scalar heads: TRL's and torch's values and gradients, identities, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.losses.reward import (
    bradley_terry,
    cross_entropy,
    ordered_pairs,
    ranked,
    squared_error,
)
from ptjax.types import Outputs
from tests.losses.checks import GOLDEN, Table, given, minimised, rows

CASES = GOLDEN["cases"]["rewards"]
PAIRED = {name: case for name, case in CASES.items() if case["loss"] == "bradley_terry"}
SINGLE = {name: case for name, case in CASES.items() if name not in PAIRED}


def by_method(name, rewards, settings, **columns):
    """A method's loss of rewards [B, N], each at its sequence's one token."""
    batch = {"valid": jnp.ones((*rewards.shape, 1), bool), "weights": jnp.ones_like(rewards)}
    method = METHODS[name].bind(settings, "hparams")
    return minimised(method, Outputs(scores=rewards[..., None]), batch | columns)


def paired(rewards, frozen):
    def mean(loss, *, margin=False, **settings):
        by = given("margin", rewards.dtype) * margin
        return by_method("reward", rewards, settings, margin=by)

    return {name: mean(**case) for name, case in PAIRED.items()}


def single(rewards, frozen):
    scores, labels, present = (
        given(name, rewards.dtype) for name in ("scores", "labels", "present")
    )
    alone = rewards.reshape(-1, 1)
    hard = (labels > 0.5).astype(rewards.dtype).reshape(-1, 1)
    steps = {"labels": labels[:, None], "mask": jnp.ones_like(labels[:, None])}
    steps |= {"weights": jnp.ones_like(labels[:, :1])}
    solutions = Outputs(scores=rewards[:, None])
    return {
        "ranked": by_method("reward_ranked", rewards, {}, scores=scores, weights=present),
        "squared_error": by_method("reward_regression", alone, {}, scores=scores.reshape(-1, 1)),
        "cross_entropy": minimised(METHODS["process_reward"].bind({}, ""), solutions, steps),
        "cross_entropy_hard": by_method("outcome_reward", alone, {}, scores=hard),
    }


@pytest.fixture(scope="module")
def tables():
    both = np.stack([GOLDEN["chosen"], GOLDEN["rejected"]], -1)
    return Table(paired, both), Table(single, GOLDEN["rewards"])


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_torchs(tables, case):
    tables[case in SINGLE].check_golden(case)


def test_finite_differences_in_float64(tables):
    for table in tables:
        table.check_finite_differences()


def test_float32_is_close(tables):
    for table in tables:
        table.check_float32()


def test_bfloat16_is_within_its_rounding(tables):
    for table in tables:
        table.check_bfloat16()


def test_pairs_of_a_ranking_are_those_of_real_answers_that_differ():
    scores = jnp.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [2.0, 9.0, 1.0]])
    weights = jnp.array([[1.0, 1, 1], [1, 1, 1], [1, 0, 1]])
    pairs = ordered_pairs(scores, weights)
    wanted = np.zeros((3, 3, 3))
    wanted[0, 0, 1] = wanted[0, 0, 2] = wanted[0, 2, 1] = wanted[2, 0, 2] = 1
    np.testing.assert_array_equal(pairs, wanted)
    losses = ranked(jnp.array([[0.3, -1.0, 2.0]] * 3), pairs)
    assert losses[1] == 0
    np.testing.assert_allclose(losses[2], np.log1p(np.exp(2 - 0.3)), rtol=1e-6)


@jax.jit
def of_scores(rewards, scores, weights):
    return ranked(rewards, ordered_pairs(scores, weights), center=0.1)


def test_a_ranking_of_two_is_a_pair_and_counts_a_prompt_once():
    rewards = np.random.RandomState(0).standard_normal((5, 2)).astype(np.float32)
    scores, real = np.float32([[1, 0]] * 5), np.ones((5, 2), np.float32)
    wanted = bradley_terry(*map(jnp.asarray, rewards.T), center=0.1)
    np.testing.assert_allclose(of_scores(rewards, scores, real), wanted, rtol=1e-6)
    wide = [
        np.pad(x, ((0, 0), (0, 3)), constant_values=value)
        for x, value in ((rewards, 7), (scores, 9), (real, 0))
    ]
    np.testing.assert_allclose(of_scores(*wide), wanted, rtol=1e-6)
    equal = of_scores(np.zeros((5, 2), np.float32), scores, real)
    np.testing.assert_allclose(equal, np.log(2), rtol=1e-6)


def test_closed_forms():
    zero = jnp.zeros(1)
    np.testing.assert_allclose(bradley_terry(zero, zero), np.log(2), rtol=1e-6)
    far = bradley_terry(jnp.array([5.0]), jnp.array([3.0]), jnp.array([2.0]), center=0.01)
    np.testing.assert_allclose(far, np.log(2) + 0.64, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(zero, jnp.array([0.3])), np.log(2), rtol=1e-6)
    logit = jnp.array([np.log(0.3 / 0.7)], jnp.float32)
    entropy = -0.3 * np.log(0.3) - 0.7 * np.log(0.7)
    np.testing.assert_allclose(cross_entropy(logit, jnp.array([0.3])), entropy, rtol=1e-6)


def test_finite_at_rewards_of_a_thousand():
    far = jnp.array([[1000.0, -1000.0], [-1000.0, 1000.0]])
    pairs = ordered_pairs(jnp.array([[1.0, 0], [1, 0]]), jnp.ones((2, 2)))

    def losses(x):
        flat = x.reshape(-1)
        labels = jnp.array([1.0, 0, 1, 0])
        two = [bradley_terry(x[:, 0], x[:, 1], center=0.01), ranked(x, pairs)]
        four = [cross_entropy(flat, labels), squared_error(flat, labels)]
        return jnp.concatenate([*two, *four])[:, None]

    values, gradients = rows(losses)(far)
    assert np.isfinite(values).all() and np.isfinite(gradients).all()
