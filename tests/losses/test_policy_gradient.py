"""Surrogates, ratios, KL, corrections on arrays: closed forms, slopes, invariances."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.losses.kl import KLS
from ptjax.losses.offline import awr, dro
from ptjax.losses.policy_gradient import SURROGATES, Sampled
from ptjax.losses.ratios import CORRECTIONS, LIMIT, RATIOS, correction, off_policy_mask
from tests.golden import weights
from tests.losses.checks import QUICK, Table, rows

GOLDEN = weights.load("policy_gradient")
MASK = GOLDEN["mask"]
FROZEN_RATIO = ("cispo", "vespo")
"""Surrogates through whose ratio no gradient flows."""
WAYS = [
    *((name, "token") for name in SURROGATES),
    *(("clipped", ratio) for ratio in RATIOS if ratio != "token"),
]


def given(name, dtype):
    return jnp.asarray(GOLDEN[name], dtype)


def sampled(logps, frozen, name, ratio):
    """Tokens whose ratio is of the frozen log-probs where the gradient does not see it."""
    dtype = logps.dtype
    mask, old = given("mask", dtype), given("old_logps", dtype)
    advantages = given("advantages", dtype)[..., None] * mask
    made = Sampled.of(logps, old, advantages, mask, ratio=ratio)
    if name in FROZEN_RATIO:
        return made._replace(logratio=RATIOS[ratio](frozen, old, mask))
    if ratio == "sequence_token":
        level = RATIOS["sequence"](frozen, old, mask)
        return made._replace(logratio=level + (logps - frozen) * mask)
    return made


def means(logps, frozen):
    found = {
        f"{name} {ratio}": SURROGATES[name](sampled(logps, frozen, name, ratio)).mean()
        for name, ratio in WAYS
    }
    mask, ref = given("mask", logps.dtype), given("ref_logps", logps.dtype)
    found |= {name: (mask * kl(logps, ref)).mean() for name, kl in KLS.items()}
    a = given("advantages", logps.dtype)
    found["awr"] = (awr(logps, a[..., None] * mask, temperature=0.7, cap=2.0) * mask).sum()
    found["awr"] /= mask.sum()
    apart = ((logps - ref) * mask).sum(-1)
    found["dro"] = dro(apart, a, jnp.asarray(0.3, logps.dtype), temperature=0.4).mean()
    return found


@pytest.fixture(scope="module")
def table():
    return Table(means, GOLDEN["logps"], GOLDEN)


def test_finite_differences_in_float64(table):
    table.check_finite_differences()


@pytest.mark.parametrize("case", ["awr", "dro"])
def test_offline_losses_are_the_papers(table, case):
    table.check_golden(case)


def one(logratio, advantage, logps=-1.0):
    """A completion of one token for each log-ratio."""
    u = jnp.atleast_1d(jnp.asarray(logratio, jnp.float32))[:, None]
    a = jnp.broadcast_to(jnp.asarray(advantage, jnp.float32).reshape(-1, 1), u.shape)
    return Sampled(jnp.full_like(u, logps), u, a, jnp.ones_like(u))


LOG = np.log


quick = partial(jax.jit, compiler_options=QUICK)


def loss_of(name, made, **settings):
    return np.asarray(quick(partial(SURROGATES[name], **settings))(made))


def test_on_policy_every_gradient_is_reinforces():
    mask = jnp.array([[0.0, 1, 1, 0, 1]])
    advantages = (1.5, -0.5)

    def losses(logps):
        old = jax.lax.stop_gradient(logps)
        each = [Sampled.of(logps, old, a * mask, mask) for a in advantages]
        return jnp.array([[loss(made).sum() for made in each] for loss in SURROGATES.values()])

    found = quick(jax.jacobian(losses))(jnp.array([[-9.0, -1, -0.1, -9, -3]]))
    for name, both in zip(SURROGATES, found, strict=True):
        for a, gradient in zip(advantages, both, strict=True):
            np.testing.assert_allclose(gradient, -a * mask, atol=1e-6, err_msg=name)


def test_clips_in_closed_form():
    r = LOG([0.5, 0.9, 1.1, 2.0])
    good, bad = one(r, 1.0), one(r, -1.0)
    wanted = [
        (good, dict(clip_high=0.28), [-0.5, -0.9, -1.1, -1.28]),
        (bad, dict(), [0.8, 0.9, 1.1, 2.0]),
        (bad, dict(dual_clip=1.5), [0.8, 0.9, 1.1, 1.5]),
        (bad, dict(ratio_cap=1.3), [0.8, 0.9, 1.1, 1.3]),
    ]
    for made, settings, values in wanted:
        np.testing.assert_allclose(loss_of("clipped", made, **settings)[:, 0], values, rtol=1e-6)
    far = one(LOG([0.1, 7.0]), 1.0)
    np.testing.assert_allclose(loss_of("cispo", far)[:, 0], [0.1, 5], rtol=1e-6)
    both = loss_of("cispo", far, clip_low=0.2, clip_high=0.2)
    np.testing.assert_allclose(both[:, 0], [0.8, 1.2], rtol=1e-6)


def test_gmpo_is_a_clipped_geometric_mean():
    u = jnp.array([[0.9, -0.9, 0.1, 7.0]])
    mask = jnp.array([[1.0, 1, 1, 0]])
    for sign, kept in ((1, (0.4 - 0.9 + 0.1) / 3), (-1, (0.9 - 0.4 + 0.1) / 3)):
        found = loss_of("gmpo", Sampled(u, u * mask, sign * mask, mask))
        np.testing.assert_allclose(found, -sign * np.exp(kept) * mask, rtol=1e-6)


def test_sapo_and_vespo_at_one_and_far():
    near = one([0.0, 0.0], [1.0, -1.0])
    np.testing.assert_allclose(loss_of("sapo", near)[:, 0], [-2, 2 / 1.05], rtol=1e-6)
    np.testing.assert_allclose(loss_of("vespo", near)[:, 0], [1, -1], rtol=1e-6)
    far = loss_of("vespo", one([-5.0, 3.0], [1.0, 1.0]))
    assert (far < 1e-3).all() and (far >= 0).all()


def test_extremes_are_finite():
    """Log-ratios and log-probs of the size of float32's exponent."""

    def losses(u, a):
        made = Sampled(u, u, a, jnp.ones_like(u))
        return jnp.stack([loss(made).sum() for loss in SURROGATES.values()])

    run = quick(lambda u, a: (losses(u, a), jax.jacobian(losses)(u, a)))
    for logratio in (-300.0, 300.0):
        for advantage in (-3.0, 0.0, 3.0):
            for x in run(jnp.full((1, 2), logratio), jnp.full((1, 2), advantage)):
                assert np.isfinite(x).all(), (logratio, advantage)


def test_levels_of_the_ratio():
    logps = jnp.array([[-1.0, -2, -3, 5]])
    old = jnp.array([[-2.0, -2, -5, -jnp.inf]])
    mask = jnp.array([[1.0, 1, 1, 0]])
    wanted = {"token": [1, 0, 2, 0], "sequence": [1, 1, 1, 0], "sequence_sum": [3, 3, 3, 0]}
    wanted["sequence_token"] = wanted["sequence"]
    for name, values in wanted.items():
        np.testing.assert_allclose(RATIOS[name](logps, old, mask)[0], values, err_msg=name)


def test_both_forms_of_gspo_have_one_gradient():
    """Where advantages are alike over a sequence, and its tokens are averaged."""
    old, mask = given("old_logps", jnp.float32), given("mask", jnp.float32)
    a = given("advantages", jnp.float32)[..., None] * mask

    def loss(logps, ratio):
        made = Sampled.of(logps, old, a, mask, ratio=ratio)
        values = SURROGATES["clipped"](made, clip_low=0.03, clip_high=0.05)
        return (values.sum(-1) / mask.sum(-1)).sum()

    logps = given("logps", jnp.float32)
    levels = ("sequence", "sequence_token")
    both = [quick(jax.grad(partial(loss, ratio=ratio)))(logps) for ratio in levels]
    np.testing.assert_allclose(*both, atol=1e-6)


@pytest.mark.parametrize("how", CORRECTIONS[1:])
def test_importance_weights_are_trls(how):
    with jax.enable_x64(True):
        old, sampler = given("old_logps", jnp.float64), given("sampler_logps", jnp.float64)
        mask, run = jnp.asarray(MASK), partial(correction, how=how, low=0.7, high=1.4)
        found, back = quick(lambda old: jax.vjp(lambda x: run(x, sampler, mask), old))(old)
        (slope,) = back(jnp.ones_like(found))
    np.testing.assert_allclose(np.asarray(found) * MASK, GOLDEN[f"weights_{how}"], rtol=1e-12)
    assert not slope.any()


def test_importance_weights_make_another_samplers_mean_unbiased():
    """E over the sampler of w f = E over the policy of f, where nothing is cut."""
    policy, sampler = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.2, 0.3, 0.5])
    ones = jnp.ones([3, 1])
    w = correction(jnp.log(policy)[:, None], jnp.log(sampler)[:, None], ones, high=1e9)
    np.testing.assert_allclose(sampler * w[:, 0], policy, rtol=1e-6)
    with pytest.raises(ValueError, match="how 'none' is none of token_truncate"):
        correction(ones, ones, ones, how="none")


def test_the_off_policy_mask_drops_bad_answers_that_became_unlikely():
    mask = jnp.array([[0.0, 1, 1]] * 3)
    logps = jnp.array([[0.0, -3, -3], [0, -3, -3], [0, -1, -1.1]])
    a = jnp.array([[-1.0], [1.0], [-1.0]]) * mask
    kept = quick(partial(off_policy_mask, threshold=0.5))(logps, -1 * mask, a, mask)
    np.testing.assert_array_equal(kept[:, 1], [0, 1, 1])


def test_kl_estimators_agree_with_the_divergence():
    """Mean over the policy: k1 and k3 are KL, k2 near it; k2's gradient is KL's, k1's is 0."""
    logits, reference = jnp.array([0.3, -0.2, 0.5, 0.0]), jnp.array([0.1, 0.2, 0.4, -0.3])
    ref = jax.nn.log_softmax(reference)

    def mean(logits, kl, sampler):
        return jnp.sum(jax.nn.softmax(sampler) * kl(jax.nn.log_softmax(logits), ref))

    def true(logits):
        lp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(lp) * (lp - ref))

    run = {name: quick(jax.value_and_grad(partial(mean, kl=kl))) for name, kl in KLS.items()}
    found = {name: one(logits, sampler=logits) for name, one in run.items()}
    value, slope = quick(jax.value_and_grad(true))(logits)
    for name, rtol in (("k1", 1e-5), ("k3", 1e-5), ("k2", 0.1)):
        np.testing.assert_allclose(found[name][0], value, rtol=rtol)
    slopes = {name: one[1] for name, one in found.items()}
    np.testing.assert_allclose(slopes["k2"], slope, atol=1e-6)
    np.testing.assert_allclose(slopes["k1"], 0, atol=1e-6)


@rows
def each(logps, old, advantages, mask, weights):
    """Every surrogate's and level's share of a mean over sequences [way, B]."""
    found = []
    for name, ratio in WAYS:
        made = Sampled.of(logps, old, advantages, mask, ratio=ratio)
        values = jnp.sum(SURROGATES[name](made) * mask, -1)
        found.append(jnp.where(weights == 0, 0, values) * weights / weights.sum())
    return jnp.stack(found)


def batch():
    names = ("logps", "old_logps", "mask")
    logps, old, mask = (GOLDEN[name].reshape(12, -1) for name in names)
    a = GOLDEN["advantages"].reshape(12, 1) * mask
    return [np.asarray(x, np.float32) for x in (logps, old, a, mask, np.ones(12))]


def test_padding_permutation_micro_batches_and_filler():
    given = batch()
    values, gradients = each(*given)
    assert np.abs(np.asarray(gradients)).max(axis=(1, 2)).min() > 1e-3

    for before, after in ((0, 5), (3, 2)):  # padding that holds what nothing may read
        pad = [(0, 0), (before, after)]
        wide = [np.pad(x, pad, constant_values=7.0) for x in given[:3]]
        found, slopes = each(*wide, np.pad(given[3], pad), given[4])
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-7)
        inside = slice(before, before + given[0].shape[1])
        np.testing.assert_allclose(slopes[..., inside], gradients, rtol=1e-5, atol=1e-7)
        assert not np.delete(slopes, np.r_[inside], axis=-1).any()

    order = np.random.RandomState(3).permutation(12)
    found, slopes = each(*(x[order] for x in given))
    np.testing.assert_allclose(found, values[:, order], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slopes, gradients[:, order], rtol=1e-5, atol=1e-7)

    alone = [each(*(x[i : i + 1] for x in given)) for i in range(12)]
    parts = [np.concatenate([x[k] for x in alone], 1) / 12 for k in (0, 1)]
    np.testing.assert_allclose(parts[0], values, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(parts[1], gradients, rtol=1e-5, atol=1e-7)

    fill = [x.copy() for x in given]
    for x, junk in zip(fill, (-300.0, 300.0, 9.0), strict=False):
        x[-2:] = junk
    fill[4][-2:] = 0
    found, slopes = each(*fill)
    np.testing.assert_allclose(found[:, :10], values[:, :10] * 1.2, rtol=1e-5, atol=1e-7)
    assert not np.asarray(found[:, 10:]).any() and not np.asarray(slopes[:, 10:]).any()


def test_bfloat16_within_its_rounding():
    given = batch()
    values, _ = each(*given)
    coarse, _ = each(*(jnp.asarray(x, jnp.bfloat16) for x in given))
    scale = np.abs(values).max(axis=1, keepdims=True)
    assert (np.abs(np.asarray(coarse, np.float32) - values) / scale).max() < 0.05


def test_the_cut_of_exponents_is_wide():
    assert np.exp(LIMIT) > 1e8
