"""SFT's hyperparameters, what it needs, and the term weights that it promises."""

import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms.sft import SFT, token_weights
from ptjax.errors import UserError
from ptjax.types import Mean, Outputs

BATCH = {
    "mask": jnp.array([[[0.0, 1, 1]], [[0, 0, 1]]]),
    "weights": jnp.array([[1.0], [0.5]]),
}
LOGPS = jnp.array([[[0.0, -1, -2]], [[0, -9, -4]]])


@pytest.mark.parametrize(
    ("hparams", "needs", "linear"),
    [
        ({}, ("logps",), True),
        (dict(loss="dft"), ("logps",), False),
        (dict(label_smoothing=0.1), ("logps", "mean_logps"), False),
        (dict(z_loss_weight=1e-4), ("logps", "logsumexp"), False),
    ],
)
def test_needs_only_what_it_reads(hparams, needs, linear):
    bound = SFT.bind(hparams, "hparams")
    assert bound.needs == needs
    assert (bound.linear is not None) == linear


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        (dict(loss="mse"), "'mse' is none of nll, dft"),
        (dict(loss="dft", label_smoothing=0.1), "label_smoothing goes with loss='nll'"),
        (dict(label_smoothing=1.0), "not in \\[0, 1\\)"),
        (dict(z_loss_weight=-1), "z_loss_weight -1.0 is negative"),
        (dict(label_smothing=0.1), "hparams: unknown key 'label_smothing'; did you mean"),
    ],
)
def test_refuses(hparams, message):
    with pytest.raises(UserError, match=message):
        SFT.bind(hparams, "hparams")


def test_the_mean_is_over_weighted_tokens():
    terms, metrics = SFT.bind({}, "hparams").terms(Outputs(logps=LOGPS), BATCH)
    coefficient, mean = terms["loss"]
    assert coefficient == 1
    np.testing.assert_allclose(mean.value(), (1 + 2 + 0.5 * 4) / 2.5)
    assert metrics["nll"].value() == mean.value()
    np.testing.assert_array_equal(token_weights(BATCH)[:, 0], [[0, 1, 1], [0, 0, 0.5]])


def test_terms_share_their_weights_and_keep_their_coefficients():
    bound = SFT.bind(dict(z_loss_weight=0.25), "hparams")
    terms, _ = bound.terms(Outputs(logps=LOGPS, logsumexp=2 * jnp.ones_like(LOGPS)), BATCH)
    assert terms["z_loss"] == (0.25, Mean(jnp.float32(10), jnp.float32(2.5)))
