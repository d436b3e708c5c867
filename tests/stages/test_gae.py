"""The stage of PPO against a loop over tokens: gaps, missing rewards, whitening, pretraining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.stages.base import Context
from ptjax.stages.gae import gae, gae_and_entropy
from ptjax.stages.token_advantages import high_entropy
from ptjax.types import Outputs

B, N, T = 3, 2, 9
STATE = np.random.RandomState(3)
MASK = (STATE.rand(B, N, T) < 0.6).astype(np.float32)
MASK[..., 0] = 0
MASK[0, 0] = [0, 0, 1, 1, 0, 0, 1, 0, 0]  # what a tool wrote lies in between
WEIGHTS = np.ones((B, N), np.float32)
WEIGHTS[1, 1] = 0  # its reward is missing
LOGPS, REF, VALUES = (
    np.where(MASK == 0, 0, STATE.standard_normal((B, N, T))).astype(np.float32) for _ in range(3)
)
ENTROPY = np.where(MASK == 0, 0, STATE.rand(B, N, T)).astype(np.float32)
REWARDS = np.where(WEIGHTS > 0, STATE.standard_normal((B, N)), 0).astype(np.float32)


def staged(step=0, extra=None, stage=gae, training=True, **hparams):
    """(columns and weights, logged) of the stage over the batch."""
    asked = []

    def policy(batch, fields):
        asked.append(fields)
        said = Outputs(logps=jnp.asarray(LOGPS), values=jnp.asarray(VALUES))
        return said._replace(entropy=jnp.asarray(ENTROPY)) if "entropy" in fields else said

    context = Context(
        step=step,
        training=training,
        trained={},
        policy=policy,
        reference=policy,
        model=lambda: None,
        mesh=sharding.make_mesh({}, jax.devices()[:1]),
    )
    given = {"mask": MASK, "weights": WEIGHTS, "rewards": REWARDS, "ref_logps": REF}
    batch = {k: jnp.asarray(v) for k, v in (given | (extra or {})).items() if v is not None}
    found, carry = stage.run(context, batch, None, **hparams)
    fields = ("logps", "values", *(("entropy",) if "old_entropy" in stage.writes else ()))
    assert asked == [fields] and carry is None
    assert set(found) - set(batch) == set(stage.writes)
    names = (*stage.writes, "weights")
    return {name: np.asarray(found[name]) for name in names}, context.logged


def by_hand(*, gamma, lam, beta, ref=REF):
    """Advantages and returns, token after token from the end."""
    advantages, returns = np.zeros((2, B, N, T))
    for b, n in np.argwhere(WEIGHTS > 0):
        next_value = next_advantage = 0.0
        left = REWARDS[b, n]
        for t in reversed(np.flatnonzero(MASK[b, n])):
            reward = left - beta * (LOGPS[b, n, t] - ref[b, n, t])
            left = 0.0
            delta = reward + gamma * next_value - VALUES[b, n, t]
            next_advantage = delta + gamma * lam * next_advantage
            next_value = VALUES[b, n, t]
            advantages[b, n, t] = next_advantage
            returns[b, n, t] = next_advantage + next_value
    return advantages, returns


@pytest.mark.parametrize(
    "settings",
    [dict(gamma=1.0, lam=0.95, beta=0.05), dict(gamma=0.9, lam=0.5, beta=0.3)],
)
def test_advantages_and_returns_are_those_of_a_loop(settings):
    found, logged = staged(whitened=False, **settings)
    advantages, returns = by_hand(**settings)
    np.testing.assert_allclose(found["advantages"], advantages, atol=1e-5)
    np.testing.assert_allclose(found["returns"], returns, atol=1e-5)
    np.testing.assert_array_equal(found["old_logps"], LOGPS)
    tokens = MASK * WEIGHTS[..., None] > 0
    np.testing.assert_array_equal(found["old_values"], np.where(tokens, VALUES, 0))
    error, whole = returns[tokens] - VALUES[tokens], returns[tokens]
    explained = 1 - error.var() / whole.var()
    np.testing.assert_allclose(logged["value/explained"], explained, rtol=1e-4)
    np.testing.assert_allclose(logged["kl/reward"], (LOGPS - REF)[tokens].mean(), rtol=1e-4)


def test_advantages_are_whitened_over_the_answers_that_count():
    found, _ = staged(gamma=1.0, lam=0.95, beta=0.05)
    advantages, returns = by_hand(gamma=1.0, lam=0.95, beta=0.05)
    tokens = MASK * WEIGHTS[..., None] > 0
    seen = advantages[tokens]
    wanted = (seen - seen.mean()) / seen.std(ddof=1)
    np.testing.assert_allclose(found["advantages"][tokens], wanted, atol=1e-4)
    assert not found["advantages"][~tokens].any()
    np.testing.assert_allclose(found["returns"], returns, atol=1e-5)


def test_a_missing_reward_reaches_nothing():
    wild = np.where(WEIGHTS > 0, REWARDS, 1e6).astype(np.float32)
    one, other = staged()[0], staged(extra={"rewards": wild})[0]
    for name in ("advantages", "returns"):
        np.testing.assert_array_equal(one[name], other[name])
        assert not one[name][1, 1].any()


def test_returns_may_look_further_than_advantages():
    found, _ = staged(lam=0.95, value_lam=1.0, whitened=False, beta=0.0)
    np.testing.assert_allclose(
        found["advantages"], by_hand(gamma=1.0, lam=0.95, beta=0.0)[0], atol=1e-5
    )
    tokens = MASK * WEIGHTS[..., None]
    np.testing.assert_allclose(found["returns"], REWARDS[..., None] * tokens, atol=1e-5)


def test_no_reference_and_a_controller():
    free, logged = staged(extra={"ref_logps": None}, whitened=False)
    np.testing.assert_allclose(
        free["advantages"], by_hand(gamma=1.0, lam=0.95, beta=0.0)[0], atol=1e-5
    )
    assert "kl/reward" not in logged
    led, _ = staged(extra={"kl_coef": np.full(B, 0.4, np.float32)}, whitened=False, beta=0.05)
    np.testing.assert_allclose(
        led["advantages"], by_hand(gamma=1.0, lam=0.95, beta=0.4)[0], atol=1e-5
    )


def test_truncated_answers_may_be_left_out_of_everything():
    """As if their reward were missing; the held-out ones are judged all the same."""
    cut = np.zeros((B, N), np.float32)
    cut[0, 1] = cut[2, 0] = 1
    left = WEIGHTS * (1 - cut)
    plain, _ = staged(extra={"truncated": cut})
    np.testing.assert_array_equal(plain["weights"], WEIGHTS)
    wanted, told = staged(extra={"weights": left})
    found, logged = staged(extra={"truncated": cut}, mask_truncated=True)
    for name, column in wanted.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    np.testing.assert_array_equal(found["weights"], left)
    assert logged == told and not found["advantages"][0, 1].any()
    held_out, _ = staged(extra={"truncated": cut}, mask_truncated=True, training=False)
    np.testing.assert_array_equal(held_out["weights"], WEIGHTS)


def test_only_the_tokens_of_greatest_entropy_keep_an_advantage():
    tokens = MASK * WEIGHTS[..., None]
    kept = high_entropy(jnp.asarray(ENTROPY), jnp.asarray(tokens), 0.4)
    assert 0 < kept.sum() < tokens.sum()
    plain, _ = staged()
    found, _ = staged(stage=gae_and_entropy, top_entropy=0.4)
    np.testing.assert_array_equal(found["old_entropy"], ENTROPY)
    np.testing.assert_array_equal(found["advantages"], plain["advantages"] * kept)
    np.testing.assert_array_equal(found["returns"], plain["returns"])
    told, _ = staged(stage=gae_and_entropy, entropy_target=0.5)
    np.testing.assert_array_equal(told["advantages"], plain["advantages"])


def test_kl_in_the_loss_leaves_rewards_alone():
    found, logged = staged(kl_in="loss", beta=0.3)
    wanted, _ = staged(extra={"ref_logps": None})
    np.testing.assert_array_equal(found["advantages"], wanted["advantages"])
    assert "kl/reward" not in logged


def test_the_value_function_learns_alone_at_first():
    for step, wanted in ((0, 0.0), (4, 0.0), (5, 1.0)):
        np.testing.assert_array_equal(
            staged(step, value_pretrain=5)[0]["policy_coef"], [wanted] * B
        )
    np.testing.assert_array_equal(staged(0)[0]["policy_coef"], [1.0] * B)
