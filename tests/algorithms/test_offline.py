"""Learning from logged answers: what AWR and DRO measure, where they stand still, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.errors import UserError
from ptjax.types import Outputs
from tests.losses.checks import QUICK

MASK = jnp.array([[[0.0, 1, 1, 0]], [[0, 1, 0, 0]], [[0, 1, 1, 1]]])
WEIGHTS = jnp.array([[1.0], [1.0], [0.0]])


def terms(method, logps, batch, **hparams):
    """The loss, its gradient and the metrics."""
    bound = METHODS[method].bind(hparams, "hparams")

    def loss(logps):
        found, metrics = bound.terms(Outputs(logps=logps), batch)
        return found["loss"][1].value(), metrics

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    (value, metrics), gradient = run(logps)
    return float(value), {name: float(m.value()) for name, m in metrics.items()}, gradient


def test_awr_imitates_by_weight_and_caps_it():
    logps = -1.0 * MASK
    advantages = jnp.array([0.5, 9.0, 9.0])[:, None, None] * MASK
    batch = {"mask": MASK, "weights": WEIGHTS, "advantages": advantages}
    value, metrics, gradient = terms("awr", logps, batch, temperature=0.5, weight_cap=4.0)
    assert value == pytest.approx((2 * np.e + 4) / 3, rel=1e-6)
    assert metrics["weight"] == pytest.approx(value, rel=1e-6)
    assert (metrics["capped"], metrics["nll"]) == (pytest.approx(1 / 3), 1)
    np.testing.assert_allclose(gradient[0, 0], [0, -np.e / 3, -np.e / 3, 0], rtol=1e-6)
    assert not gradient[2].any()


def test_dro_stands_still_where_policy_and_rewards_agree():
    """R - V = τ log p / p_ref; a better reward than that makes the answer more likely."""
    ref = -1.0 * MASK
    logps = ref + 0.25 * MASK
    ratio = 0.25 * MASK.sum(-1)
    batch = {"mask": MASK, "weights": WEIGHTS, "ref_logps": ref, "baseline": jnp.full(3, 0.3)}
    at_rest = batch | {"scores": 0.3 + 2.0 * ratio}
    value, metrics, gradient = terms("dro", logps, at_rest, temperature=2.0)
    assert value == pytest.approx(0, abs=1e-10) and metrics["residual"] < 1e-5
    assert metrics["logratio"] == pytest.approx(0.375)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    better = batch | {"scores": 1.3 + 2.0 * ratio}
    value, metrics, gradient = terms("dro", logps, better, temperature=2.0)
    assert (value, metrics["residual"]) == (pytest.approx(0.5), pytest.approx(1))
    np.testing.assert_allclose(gradient, -2.0 * MASK * WEIGHTS[..., None] / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "given"),
    [("awr", {"temperature": 0.0}), ("dro", {"temperature": -1.0}), ("awr", {"weight_cap": 0.0})],
)
def test_what_has_no_meaning_is_refused(method, given):
    with pytest.raises(UserError, match=f"hparams.{next(iter(given))} = .*: it must be positive"):
        METHODS[method].bind(given, "hparams")
