"""The advantage's stages: golden numbers, statistics over the real answers, controllers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms.base import known_call
from ptjax.algorithms.online import PRESETS, online
from ptjax.rewards.base import Reward
from ptjax.sharding import make_mesh, put_batch
from ptjax.stages.advantage import advantage
from ptjax.stages.base import Context, Stage
from ptjax.stages.control import entropy_control, kl_control
from ptjax.stages.logged import dro_baseline, logged_advantage
from ptjax.stages.old import old_outputs
from ptjax.stages.rollout import Rollout
from ptjax.stages.token_advantages import high_entropy
from ptjax.types import Outputs
from tests.golden import weights

GOLDEN = weights.load("policy_gradient")
CASES = GOLDEN["advantage_cases"]
ROLLOUT = Stage("rollout", lambda ctx, batch, carry: (batch, carry), sequences=4)


def columns(dtype=np.float32, **more):
    parts = GOLDEN["rewards"] * GOLDEN["reward_weights"]
    mask = GOLDEN["mask"].astype(dtype)
    names = ("old_logps", "ref_logps", "sampler_logps")
    given = {
        **{name: GOLDEN[name].astype(dtype) for name in names},
        "old_entropy": GOLDEN["entropy"].astype(dtype),
        "mask": mask,
        "weights": np.ones(mask.shape[:2], dtype),
        "rewards": np.nansum(parts, -1).astype(dtype),
        "reward_parts": parts.astype(dtype),
        "greedy_rewards": GOLDEN["greedy"].astype(dtype),
        "truncated": np.zeros(mask.shape[:2], dtype),
        **more,
    }
    return {name: jnp.asarray(column) for name, column in given.items()}


def nothing(*_, **__):
    raise AssertionError("this stage asks the model nothing")


def context(policy=nothing):
    rewards = [Reward("one", nothing, float(weight)) for weight in GOLDEN["reward_weights"]]
    rollout = object.__new__(Rollout)
    object.__setattr__(rollout, "rewards", tuple(rewards))
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    return Context(1, True, {}, policy, nothing, nothing, mesh, rollout=rollout)


def run(batch, ctx=None, **settings):
    return advantage.run(ctx or context(), batch, None, **settings)[0]


@pytest.mark.parametrize("case", CASES)
def test_advantages_are_the_references(case):
    """TRL's Bessel correction is float32."""
    with jax.enable_x64(True):
        found = run(columns(np.float64), **CASES[case])["advantages"]
    wanted = GOLDEN[f"advantage_{case}"]
    wanted = wanted if wanted.ndim == 3 else wanted[..., None]
    np.testing.assert_allclose(found, wanted * GOLDEN["mask"], rtol=1e-7, atol=1e-9)


OWN = {
    **dict.fromkeys(
        ("grpo", "dapo", "gspo", "gspo_token", "cispo", "gmpo", "sapo", "luspo", "vespo"), "group"
    ),
    "dr_grpo": "group_none",
    "rloo": "rloo_kl",
    "reinforce": "batch",
    "reinforce_pp_baseline": "reinforce_pp_baseline",
    "remax": "remax",
    "opo": "opo",
    "gpg": "gpg",
}
"""Presets, and the golden case of their advantage; REINFORCE++'s has another β and γ."""


@pytest.mark.parametrize("name", OWN)
def test_a_preset_as_it_is_bound_has_the_references_advantage(name):
    assert {*PRESETS} - {*OWN} == {"reinforce_pp"}
    algorithm = online(ROLLOUT)[name]
    (stage,) = [one for one in algorithm.stages if one.name == "advantage"]
    values = dict(algorithm.bind({}, "hparams").values)
    with jax.enable_x64(True):
        batch, _ = known_call(stage.run, values, context(), columns(np.float64), None)
    wanted = GOLDEN[f"advantage_{OWN[name]}"]
    wanted = wanted if wanted.ndim == 3 else wanted[..., None]
    np.testing.assert_allclose(
        batch["advantages"], wanted * GOLDEN["mask"], rtol=1e-7, atol=1e-9, err_msg=name
    )


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in ("rloo", "reinforce_pp")])
def test_a_group_of_equal_rewards_has_exactly_none(name):
    """In every preset whose reward holds no KL; the greedy answer's reward is as good."""
    algorithm = online(ROLLOUT)[name]
    values = dict(algorithm.bind({}, "hparams").values)
    rewards = np.float32([[0.1, 0.1, 0.1, 7], [0.1] * 4, [0.7] * 4])
    if values["baseline"] == "batch":
        rewards[:] = 0.1
    batch = columns(rewards=rewards, greedy_rewards=np.float32([0.1, 0.1, 0.7]))
    batch["weights"] = batch["weights"].at[0, 3].set(0)
    (stage,) = [one for one in algorithm.stages if one.name == "advantage"]
    ctx = context()
    batch, _ = known_call(stage.run, values, ctx, batch, None)
    assert not np.asarray(batch["advantages"]).any()
    assert ctx.logged["advantage/no_signal"] == 1


def test_weights_of_zero_are_left_out_of_every_statistic():
    """Values that are not there change nothing; what they would have had is 0."""
    chosen = ("group_batch", "parts", "rloo_kl", "opo", "reinforce_pp")
    kept = np.ones((3, 4))
    kept[0, 1] = kept[2] = 0
    junk = {"rewards": 99.0, "reward_parts": 77.0, "old_logps": -50.0}
    with jax.enable_x64(True):
        clean = columns(np.float64, weights=kept)
        dirty = {name: np.array(column) for name, column in clean.items()}
        for column, value in junk.items():
            dirty[column][kept == 0] = value
        dirty = {name: jnp.asarray(column) for name, column in dirty.items()}
        found = {n: [run(b, **CASES[n])["advantages"] for b in (clean, dirty)] for n in chosen}
    for name, both in found.items():
        np.testing.assert_array_equal(*both, err_msg=name)
        assert not np.asarray(both[0])[kept == 0].any(), name


def test_a_permutation_and_a_mesh_change_nothing():
    batch = columns()
    order = np.random.RandomState(0).permutation(3)
    shuffled = {name: column[order] for name, column in batch.items()}
    eight = {name: np.concatenate([x, x, x[:2]]) for name, x in batch.items()}
    mesh = make_mesh({"fsdp": 8})
    settings = CASES["reinforce_pp"]
    found = run(batch, **settings)["advantages"]
    again = run(shuffled, **settings)["advantages"]
    np.testing.assert_allclose(again, found[order], atol=1e-6)
    alone = run({k: jnp.asarray(x) for k, x in eight.items()}, **settings)["advantages"]
    with jax.set_mesh(mesh):
        spread = run(put_batch(eight, mesh), **settings)["advantages"]
    np.testing.assert_allclose(spread, alone, atol=1e-5)


def test_truncated_answers_count_in_their_group_and_not_in_the_loss():
    cut = np.zeros((3, 4), np.float32)
    cut[0, 2] = 1
    batch = columns(truncated=cut)
    plain, masked = run(batch), run(batch, mask_truncated=True)
    np.testing.assert_array_equal(masked["advantages"], plain["advantages"])
    np.testing.assert_array_equal(masked["weights"], 1 - cut)
    held_out = run(batch, dataclasses.replace(context(), training=False), mask_truncated=True)
    np.testing.assert_array_equal(held_out["weights"], 1)


def test_only_the_tokens_of_greatest_entropy_keep_an_advantage():
    batch = columns()
    mask, entropy = GOLDEN["mask"] > 0, GOLDEN["entropy"]
    least = np.quantile(entropy[mask], 0.7)
    kept = high_entropy(batch["old_entropy"], batch["mask"], 0.3)
    np.testing.assert_array_equal(kept, mask & (entropy >= least))
    found = run(batch, top_entropy=0.3)["advantages"]
    np.testing.assert_array_equal(found, run(batch)["advantages"] * kept)


def test_one_pass_gives_old_log_probs_and_their_entropy():
    said = Outputs(logps=jnp.ones((1, 1, 2)), entropy=jnp.full((1, 1, 2), 2.0))
    asked = []

    def policy(batch, fields):
        asked.append(fields)
        return said

    found, _ = old_outputs.run(context(policy), {}, None)
    assert asked == [("logps", "entropy")]
    assert found == {"old_logps": said.logps, "old_entropy": said.entropy}


def rounds(stage, times, batch, **settings):
    """The coefficients of several rollouts, and what was logged of the last."""
    carry, found = stage.begin({}), []
    for _ in range(times):
        ctx = context()
        batch, carry = stage.run(ctx, dict(batch), carry, **settings)
        (column,) = (batch[name] for name in stage.writes)
        assert np.ptp(column) == 0
        found.append(float(column[0]))
    return found, ctx.logged


def test_kl_control_is_zieglers():
    batch = columns()
    batch["ref_logps"] = batch["old_logps"] - 0.5 * batch["mask"]
    kl = 0.5 * GOLDEN["mask"].sum() / 12
    for target, error in ((kl / 1.1, 0.1), (kl / 9, 0.2), (kl * 9, -0.2)):
        found, logged = rounds(
            kl_control, 3, batch, beta=0.1, kl_target=float(target), kl_horizon=100
        )
        np.testing.assert_allclose(found, 0.1 * (1 + error * 12 / 100) ** np.arange(3), rtol=1e-5)
        assert logged["kl/sequence"] == pytest.approx(kl, rel=1e-5)


def test_the_entropy_bonus_is_on_below_its_target_alone():
    batch = columns()
    mean = GOLDEN["entropy"].sum() / GOLDEN["mask"].sum()
    settings = dict(entropy_coef=0.01, entropy_step=0.005)
    found, _ = rounds(
        entropy_control, 3, batch, entropy_target=mean + 1, entropy_coef_max=0.018, **settings
    )
    np.testing.assert_allclose(found, [0.01, 0.015, 0.018], rtol=1e-6)
    found, logged = rounds(entropy_control, 3, batch, entropy_target=mean - 1, **settings)
    assert found == [0, 0, 0]
    assert logged["entropy/rollout"] == pytest.approx(mean, rel=1e-5)


def test_logged_rewards_are_compared_with_all_before_them():
    state = np.random.RandomState(1)
    scores = (5 + state.standard_normal((6, 4, 1))).astype(np.float32)
    kept = np.ones((4, 1), np.float32)
    kept[3] = 0
    mask = jnp.ones((4, 1, 2))
    carry = logged_advantage.begin({})
    for one in scores:
        batch = {"scores": jnp.asarray(one), "weights": jnp.asarray(kept), "mask": mask}
        found, carry = logged_advantage.run(context(), batch, carry)
    seen = scores[:, :3].astype(float)
    wanted = (scores[-1, :3] - seen.mean()) / (seen.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(found["advantages"][:3, 0, 0], wanted[:, 0], atol=1e-5)
    assert not found["advantages"][3].any()
    before = {name: float(x) for name, x in carry.items()}
    batch["scores"] = batch["scores"].at[0].set(jnp.nan)
    _, carry = logged_advantage.run(context(), batch, carry)
    assert {name: float(x) for name, x in carry.items()} == before


def test_dros_value_is_the_mean_of_what_is_left_of_rewards():
    mask = jnp.ones((2, 1, 3))
    said = Outputs(logps=-0.5 * mask)
    ctx = context(policy=lambda batch, fields: said)
    batch = {
        "scores": jnp.array([[1.0], [3.0]]),
        "weights": jnp.ones((2, 1)),
        "mask": mask,
        "ref_logps": -1.0 * mask,
    }
    found, _ = dro_baseline.run(ctx, batch, dro_baseline.begin({}), temperature=2.0)
    np.testing.assert_allclose(found["baseline"], 2 - 2 * 1.5)
