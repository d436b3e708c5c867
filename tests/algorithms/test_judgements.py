"""Single answers and scores: what is measured, and what of the data is worth a warning."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.types import Outputs

VALID = jnp.ones((3, 2, 4), bool).at[:, 1, 3].set(False)


def scored(*rewards):
    """Outputs whose last valid token has the reward, other tokens something else."""
    scores = jnp.full((3, 2, 4), 9.0)
    scores = scores.at[:, 0, 3].set(jnp.array([r[0] for r in rewards]))
    return Outputs(scores=scores.at[:, 1, 2].set(jnp.array([r[1] for r in rewards])))


def test_rewards_are_those_of_the_last_tokens():
    batch = {
        "valid": VALID,
        "weights": jnp.array([[1.0, 1], [1, 1], [0, 0]]),
        "margin": jnp.array([0.5, 0, 0]),
    }
    bound = METHODS["reward"].bind({"center": 0.1}, "hparams")
    terms, metrics = bound.terms(scored((2.0, 1.0), (-1.0, 1.0), (0.0, 50.0)), batch)
    wanted = np.mean([np.log1p(np.exp(-0.5)) + 0.9, np.log1p(np.exp(2.0))])
    assert terms["loss"][1].value() == pytest.approx(wanted, rel=1e-5)
    assert metrics["accuracy"].value() == 0.5
    assert metrics["rewards/margin"].value() == pytest.approx(-0.5)
    assert metrics["longer/preferred"].value() == 0.5 and metrics["longer/chosen"].value() == 1
    assert metrics["longer/reward"].value() == pytest.approx(0.5)
    assert metrics["shorter/reward"].value() == pytest.approx(1)


def test_a_ranking_counts_each_prompt_once():
    batch = {
        "valid": VALID,
        "weights": jnp.array([[1.0, 1], [1, 1], [1, 0]]),
        "scores": jnp.array([[2.0, 1], [1, 1], [1, 0]]),
    }
    bound = METHODS["reward_ranked"].bind({}, "hparams")
    terms, metrics = bound.terms(scored((3.0, 1.0), (0.0, 9.0), (0.0, 9.0)), batch)
    assert terms["loss"][1].value() == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-5)
    assert terms["loss"][1].weight == 1
    assert (metrics["accuracy"].value(), metrics["best_found"].value()) == (1, 1)


@pytest.mark.parametrize(
    ("labels", "hparams", "said"),
    [
        ([1, 1, 0, 0], {}, None),
        ([1, 1, 1, 1, 0], {}, "weigh 4.00 to 1.*between 0.25 and 0.33"),
        ([1, 1, 1, 1, 0], {"undesirable_weight": 4.0}, None),
        ([1, 1], {}, "all 2 answers have one label"),
    ],
)
def test_weights_far_off_the_balance_of_labels_are_told(labels, hparams, said):
    advice = METHODS["kto"].bind(hparams, "hparams").advice(np.array(labels, float)[:, None])
    assert (advice is None) == (said is None)
    assert said is None or re.search(said, advice)
