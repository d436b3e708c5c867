"""Losses of judged completions: TRL's values and gradients, closed forms, what gets no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.losses.unpaired import UNPAIRED_LOSSES, apo_zero_unpaired, bco, kl_baseline, kto
from ptjax.types import Mean, Outputs
from tests.losses.checks import GOLDEN, Table, given, minimised, rows

CASES = GOLDEN["cases"]["unpaired"]


def means(logps, frozen):
    """Every case's mean over the sequences, each judged by itself, as its method computes it."""
    dtype = logps.dtype

    def column(name):
        """[B, 2, ...] as [2B, 1, ...]."""
        values = given(name, dtype)
        return values.reshape(-1, 1, *values.shape[2:])

    apart = (column("kl_logps") - column("kl_ref_logps")).sum(-1)
    ones = jnp.ones_like(apart)
    names = {"mask": "mask", "ref_logps": "ref_logps", "scores": "desirable"}
    batch = {key: column(name) for key, name in names.items()} | {"weights": ones}
    outputs = Outputs(logps=logps.reshape(batch["mask"].shape))

    def mean(loss, *, swap=False, shift=0.0, **settings):
        kl = kl_baseline(-apart if swap else apart, ones)
        baseline = (kl if loss == "kto" else shift) * ones[:, 0]
        method = METHODS[loss].bind(settings, "hparams")
        return minimised(method, outputs, batch | {"baseline": baseline})

    return {name: mean(**case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def table():
    return Table(means, GOLDEN["logps"])


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_trls(table, case):
    table.check_golden(case)


def test_finite_differences_in_float64(table):
    table.check_finite_differences()


def test_float32_is_close(table):
    table.check_float32()


def test_bfloat16_is_within_its_rounding(table):
    table.check_bfloat16()


def test_every_loss_has_a_golden_case():
    assert {case["loss"] for case in CASES.values()} == set(UNPAIRED_LOSSES)


SIDES = jnp.array([1.0, 0.0])
ZERO = jnp.zeros(2)


def test_closed_forms_at_the_reference():
    np.testing.assert_allclose(kto(ZERO, SIDES, ZERO), 0.5)
    np.testing.assert_allclose(apo_zero_unpaired(ZERO, SIDES), 0.5)
    np.testing.assert_allclose(bco(ZERO, SIDES, ZERO), np.log(2), rtol=1e-6)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.25}
    for loss, third in ((kto, [ZERO]), (apo_zero_unpaired, []), (bco, [ZERO])):
        ratio = loss(ZERO, SIDES, *third, **weights) / loss(ZERO, SIDES, *third)
        np.testing.assert_allclose(ratio, [1.5, 0.25])


def test_the_baseline_moves_the_loss_and_gets_no_gradient():
    kl = jnp.float32(2.0)
    at_baseline = kto(jnp.full(2, 2.0), SIDES, kl, beta=0.3)
    np.testing.assert_allclose(at_baseline, 0.5, rtol=1e-6)
    for loss, at_zero in ((kto, 0.5), (bco, np.log(2))):
        values, gradients = rows(lambda third, f=loss: f(ZERO, SIDES, third))(kl)
        assert values[0] > at_zero + 0.01 and values[1] < at_zero - 0.01
        assert not np.asarray(gradients).any()


def test_the_baseline_is_a_clamped_mean_of_real_examples():
    apart = jnp.array([3.0, -1.0, jnp.nan])
    weights = jnp.array([1.0, 1.0, 0.0])
    assert kl_baseline(apart, weights) == 1
    assert kl_baseline(-apart, weights) == 0
    assert kl_baseline(apart, 0 * weights) == 0
    gradient = jax.grad(lambda x: kl_baseline(x, weights))(apart)
    assert not np.asarray(gradient).any()


def test_order_filler_and_parts_do_not_matter():
    """One example at a time, in another order, among filler: the baseline is given."""
    state = np.random.RandomState(0)
    ratio = state.standard_normal(8).astype(np.float32)
    judged = (state.uniform(size=8) > 0.5).astype(np.float32)
    order, half = state.permutation(8), np.float32([1] * 4 + [0] * 4)

    @jax.jit
    def each(ratio, judged):
        third = jnp.float32(0.3)
        return (
            kto(ratio, judged, third),
            apo_zero_unpaired(ratio, judged),
            bco(ratio, judged, third),
        )

    def run(ratio, judged):
        return np.stack(each(ratio, judged))

    whole = run(ratio, judged)
    np.testing.assert_allclose(run(ratio[order], judged[order]), whole[:, order], rtol=1e-6)
    alone = [run(ratio[i : i + 1], judged[i : i + 1]) for i in range(8)]
    np.testing.assert_allclose(np.concatenate(alone, 1), whole, rtol=1e-6)
    for row, wanted in zip(run(ratio * half, judged * half), whole, strict=True):
        mean = Mean.of(jnp.asarray(row), jnp.asarray(half)).value()
        np.testing.assert_allclose(mean, wanted[:4].mean(), rtol=1e-6)


def test_finite_at_log_ratios_of_a_thousand():
    far = jnp.array([-1000.0, 1000.0, -1000.0, 1000.0])
    judged = jnp.array([1.0, 1.0, 0.0, 0.0])
    for name, loss in UNPAIRED_LOSSES.items():
        extra = () if name == "apo_zero_unpaired" else (jnp.float32(500),)
        values, gradients = rows(lambda x, f=loss, e=extra: f(x, judged, *e, beta=1.0))(far)
        assert np.isfinite(values).all() and np.isfinite(gradients).all()
