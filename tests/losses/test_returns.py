"""Advantages of groups, returns of tokens: golden numbers, exact zeros, what is left out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.losses import advantages as over
from ptjax.losses.returns import discounted, gae, last_token, token_rewards, whiten
from tests.golden import weights
from tests.losses.checks import QUICK

GOLDEN = weights.load("policy_gradient")
REWARDS = np.nansum(GOLDEN["rewards"] * GOLDEN["reward_weights"], -1)


def test_gae_is_the_formula_over_gaps():
    with jax.enable_x64(True):
        mask = jnp.asarray(GOLDEN["mask"])
        run = jax.jit(
            lambda r, v, mask: gae(token_rewards(r, mask), v, mask, gamma=0.9, lam=0.8),
            compiler_options=QUICK,
        )
        found = run(jnp.asarray(REWARDS), jnp.asarray(GOLDEN["critic"]), mask)
    np.testing.assert_allclose(found[0], GOLDEN["gae"], rtol=1e-12)
    np.testing.assert_allclose(found[1], GOLDEN["returns"], rtol=1e-12)


def test_gae_at_both_ends_of_lambda():
    """λ = 1: the return less V; λ = 0: one step ahead."""
    rewards = jnp.array([[0.0, 1, 0, 2, 5]])
    values, mask = jnp.array([[9.0, 3, 9, 4, 9]]), jnp.array([[0.0, 1, 0, 1, 0]])
    long, returns = gae(rewards, values, mask, gamma=0.5, lam=1.0)
    np.testing.assert_allclose(long, [[0, 1 + 0.5 * 2 - 3, 0, 2 - 4, 0]])
    np.testing.assert_allclose(returns, discounted(rewards, mask, gamma=0.5))
    short, _ = gae(rewards, values, mask, gamma=0.5, lam=0.0)
    np.testing.assert_allclose(short, [[0, 1 + 0.5 * 4 - 3, 0, 2 - 4, 0]])


def test_rewards_stand_at_the_last_token_and_kl_at_each():
    mask = jnp.array([[0.0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(last_token(mask), [[0, 0, 0, 1, 0], [0] * 5])
    found = token_rewards(jnp.array([2.0, 7]), mask, jnp.full((2, 5), 3.0), 0.1)
    np.testing.assert_allclose(found, [[0, -0.3, 0, 1.7, 0], [0] * 5], rtol=1e-6)


def test_a_return_without_discount_is_the_reward_exactly():
    mask = jnp.array([[0.0, 1, 1, 0, 1, 1]])
    reward = jnp.array([0.1])
    found = discounted(token_rewards(reward, mask), mask)
    np.testing.assert_array_equal(found, reward[:, None] * mask)


def test_whitening_leaves_out_what_has_no_weight():
    x = jnp.array([[1.0, 2, 3], [7, 99, jnp.nan]])
    kept = jnp.array([[1.0, 1, 1], [1, 0, 0]])
    found = np.asarray(jax.jit(whiten, compiler_options=QUICK)(x, kept))
    inside = np.array([1, 2, 3, 7.0])
    wanted = (inside - inside.mean()) / inside.std(ddof=1)
    np.testing.assert_allclose(found[np.asarray(kept) > 0], wanted, rtol=1e-6)
    assert not found[np.asarray(kept) == 0].any()
    uncentered = np.asarray(whiten(x, kept, center=False))[np.asarray(kept) > 0]
    np.testing.assert_allclose(uncentered, inside / inside.std(ddof=1), rtol=1e-6)


VALID = jnp.array([[True] * 7, [True, False] + [True] * 5, [True] + [False] * 6, [False] * 7])
LENGTHS = jnp.array([[3.0, 1, 4, 1, 5, 9, 2]] * 4)
BASELINES = {
    "group": over.group_mean,
    "leave_one_out": over.leave_one_out,
    "length_weighted": lambda rewards, valid: over.length_weighted(rewards, valid, LENGTHS),
    "batch": lambda rewards, valid: over.centered(rewards, valid, None),
    "whitened": lambda rewards, valid: whiten(rewards, valid.astype(rewards.dtype)),
    "parts": lambda rewards, valid: over.normalized_parts(
        jnp.stack([rewards, 3 * rewards], -1), valid, jnp.array([1.0, 3]), eps=0.0
    ),
}


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -1e-3, 1e6, 16777217.0, 0.0])
def test_equal_rewards_give_exactly_nothing(name, reward):
    """Seven times 0.1 in float32 is not 0.7: a mean taken first would leave a residue."""
    rewards = jnp.where(VALID, jnp.float32(reward), 123.0)
    found = jax.jit(BASELINES[name], compiler_options=QUICK)(rewards, VALID)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.zeros((4, 7)))
    assert not over.signal(rewards, VALID).any()
    assert not over.deviation(rewards, VALID).any()


def test_a_naive_mean_would_not():
    """The trap is real: the float32 mean of equal numbers may be another number."""
    total = np.float32(0)
    for _ in range(7):
        total += np.float32(0.1)
    assert total / np.float32(7) != np.float32(0.1)


@pytest.mark.parametrize("name", ["group", "leave_one_out", "length_weighted"])
def test_missing_rewards_are_as_if_never_sampled(name):
    state = np.random.RandomState(0)
    rewards = jnp.asarray(state.standard_normal((4, 7)), jnp.float32)
    run = jax.jit(BASELINES[name], compiler_options=QUICK)
    found = run(jnp.where(VALID, rewards, jnp.nan), VALID)
    kept = np.asarray(VALID[1])
    r, n = np.asarray(rewards)[1][kept], np.asarray(LENGTHS)[1][kept]
    wanted = {
        "group": r - r.mean(),
        "leave_one_out": r - (r.sum() - r) / (len(r) - 1),
        "length_weighted": r - (n * r).sum() / n.sum(),
    }
    np.testing.assert_allclose(found[1][kept], wanted[name], rtol=1e-5)
    assert not found[1][~kept].any() and not found[2].any() and not found[3].any()


def test_a_greedy_answer_that_is_missing_teaches_nothing():
    found = over.against_greedy(
        jnp.array([[1.0, 3], [1, 3]]), jnp.ones((2, 2), bool), jnp.array([2.0, jnp.nan])
    )
    np.testing.assert_array_equal(found, [[-1, 1], [0, 0]])


def test_parts_weigh_what_their_weights_say_whatever_their_spread():
    """A reward a hundred times as wide pulls no more; one that all abstain from does not pull."""
    parts = jnp.array([[[1.0, 300, jnp.nan], [0, 100, jnp.nan], [0, 200, jnp.nan]]])
    valid = jnp.ones((1, 3), bool)
    run = jax.jit(partial(over.normalized_parts, eps=0.0), compiler_options=QUICK)
    found = run(parts, valid, jnp.array([1.0, 100, 1]))
    first = np.array([2, -1, -1]) / np.sqrt(3)
    np.testing.assert_allclose(found[0], first + 100 * np.array([1.0, -1, 0]), rtol=1e-5)
    alone = run(parts[..., :1], valid, jnp.array([1.0]))
    np.testing.assert_allclose(alone[0], first, rtol=1e-5)
