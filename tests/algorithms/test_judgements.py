"""Single answers and scores: what is measured, and what of the data is worth a warning."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.errors import UserError
from ptjax.types import Outputs

VALID = jnp.ones((3, 2, 4), bool).at[:, 1, 3].set(False)


def scored(*rewards):
    """Outputs whose last valid token has the reward, other tokens something else."""
    scores = jnp.full((3, 2, 4), 9.0)
    scores = scores.at[:, 0, 3].set(jnp.array([r[0] for r in rewards]))
    return Outputs(scores=scores.at[:, 1, 2].set(jnp.array([r[1] for r in rewards])))


def measured(method, outputs, batch, **hparams):
    """The loss and the metrics as numbers."""
    terms, metrics = jax.jit(METHODS[method].bind(hparams, "hparams").terms)(outputs, batch)
    return float(terms["loss"][1].value()), {
        name: float(mean.value()) for name, mean in metrics.items()
    }


def test_rewards_are_those_of_the_last_tokens():
    batch = {
        "valid": VALID,
        "weights": jnp.array([[1.0, 1], [1, 1], [0, 0]]),
        "margin": jnp.array([0.5, 0, 0]),
        "scores": jnp.array([[9.0, 1], [0, 0], [0, 0]]),
    }
    outputs = scored((2.0, 1.0), (-1.0, 1.0), (0.0, 50.0))
    loss, metrics = measured("reward", outputs, batch, center=0.1)
    wanted = np.mean([np.log1p(np.exp(-0.5)) + 0.9, np.log1p(np.exp(2.0))])
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert metrics["accuracy"] == 0.5
    assert metrics["rewards/margin"] == pytest.approx(-0.5)
    assert metrics["longer/preferred"] == 0.5 and metrics["longer/chosen"] == 1
    assert metrics["longer/reward"] == pytest.approx(0.5)
    assert metrics["shorter/reward"] == pytest.approx(1)


def test_a_ranking_counts_each_prompt_once():
    batch = {
        "valid": VALID,
        "weights": jnp.array([[1.0, 1], [1, 1], [1, 0]]),
        "scores": jnp.array([[2.0, 1], [1, 1], [1, 0]]),
    }
    bound = METHODS["reward_ranked"].bind({}, "hparams")
    outputs = scored((3.0, 1.0), (0.0, 9.0), (0.0, 9.0))
    terms, metrics = jax.jit(bound.terms)(outputs, batch)
    assert terms["loss"][1].value() == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-5)
    assert terms["loss"][1].weight == 1
    assert (metrics["accuracy"].value(), metrics["best_found"].value()) == (1, 1)
    assert {"longer/preferred", "longer/chosen", "longer/reward"} < metrics.keys()


def alone(*rewards):
    """Scored answers of one each, and where their tokens stand."""
    scores = scored(*((reward, 9.0) for reward in rewards)).scores
    return Outputs(scores=scores[:, :1]), VALID[:, :1]


def softplus(x):
    return np.log1p(np.exp(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def correlation(lengths, values, weights):
    """Pearson's."""
    (one, both), (_, other) = np.cov(lengths, values, aweights=weights)
    return both / np.sqrt(one * other)


def longer(valid):
    """The same answers, the last of which has one token less."""
    return valid.at[-1, 0, 0].set(False)


def test_verdicts_on_answers():
    outputs, valid = alone(2.0, 0.5, -1.0)
    valid = longer(valid)
    batch = {
        "valid": valid,
        "weights": jnp.array([[1.0], [3], [1]]),
        "scores": jnp.array([[1.0], [0], [0]]),
    }
    loss, metrics = measured("outcome_reward", outputs, batch)
    assert loss == pytest.approx((softplus(-2) + 3 * softplus(0.5) + softplus(-1)) / 5)
    wanted = {"accuracy": 2 / 5, "rewards/right": 2.0, "rewards/wrong": (3 * 0.5 - 1) / 4}
    lengths, weights = np.asarray(valid.sum(-1))[:, 0], [1, 3, 1]
    wanted["length/reward"] = correlation(lengths, [2, 0.5, -1], weights)
    wanted["length/right"] = correlation(lengths, [1, 0, 0], weights)
    assert metrics == pytest.approx(wanted, rel=1e-4)


def test_ratings():
    outputs, valid = alone(2.0, -1.0, 50.0)
    valid = longer(valid[:2])
    valid = jnp.concatenate([valid, valid[:1]])
    batch = {
        "valid": valid,
        "weights": jnp.array([[1.0], [3], [0]]),
        "scores": jnp.array([[1.5], [1], [0]]),
    }
    loss, metrics = measured("reward_regression", outputs, batch)
    assert loss == pytest.approx((0.5**2 + 3 * 2**2) / 4)
    wanted = {"error": (0.5 + 3 * 2) / 4, "rewards/mean": (2 - 3) / 4}
    lengths = np.asarray(valid.sum(-1))[:2, 0]
    wanted["length/reward"] = correlation(lengths, [2, -1], [1, 3])
    wanted["length/rating"] = correlation(lengths, [1.5, 1], [1, 3])
    assert metrics == pytest.approx(wanted, rel=1e-4)


def test_verdicts_on_steps():
    """A good step that is found and a bad one that is not; a bad one found, a good one not."""
    outputs = Outputs(scores=jnp.array([[[9.0, 2, 9, 1]], [[9, 9, -1, -3]]]))
    batch = {
        "mask": jnp.array([[[0.0, 1, 0, 1]], [[0, 0, 1, 1]]]),
        "labels": jnp.array([[[0.0, 1, 0, 0]], [[0, 0, 0.25, 1]]]),
        "weights": jnp.array([[1.0], [2]]),
    }
    loss, metrics = measured("process_reward", outputs, batch)
    first = softplus(-2) + softplus(1)
    second = 0.25 * softplus(1) + 0.75 * softplus(-1) + softplus(3)
    assert loss == pytest.approx((first + 2 * second) / 6)
    shares = {"accuracy": 3 / 6, "accuracy/bad_steps": 2 / 3, "accuracy/good_steps": 1 / 3}
    assert metrics == pytest.approx(shares)


@pytest.mark.parametrize(
    ("method", "baseline", "value", "level", "accuracy", "saturated"),
    [
        ("kto", 1.6, sigmoid, 0.8, 6 / 7, 2 / 7),
        ("bco", 0.8, softplus, 0.8, 6 / 7, 3 / 7),
        ("apo_zero_unpaired", None, sigmoid, 0.0, 3 / 7, 3 / 7),
    ],
)
def test_single_answers_beside_a_baseline(method, baseline, value, level, accuracy, saturated):
    """Two desirable answers, an undesirable one and filler."""
    ratios, weights = np.array([1.0, 2.4, 1.2, 50]), np.array([1.0, 2, 4, 0])
    lengths = np.array([2, 1, 2, 2])
    mask = jnp.array([[[0.0, 1, length > 1]] for length in lengths])
    batch = {
        "mask": mask,
        "weights": jnp.array(weights)[:, None],
        "scores": jnp.array([[1.0], [1], [0], [0]]),
        "ref_logps": -mask,
    }
    if baseline is not None:
        batch["baseline"] = jnp.full(4, baseline)
    token = ratios / lengths
    outputs = Outputs(logps=mask * (jnp.array(token)[:, None, None] - 1))
    factors = dict(desirable_weight=1.5, undesirable_weight=0.25)
    assert measured(method, outputs, batch, beta=10.0, **factors)[1]["saturated"] == (
        pytest.approx(saturated)
    )
    loss, metrics = measured(method, outputs, batch, beta=0.5, **factors)
    rewards = 0.5 * ratios
    sides = [1.5 * value(level - rewards[:2]), 0.25 * value(rewards[2:] - level)]
    assert loss == pytest.approx(np.average(np.concatenate(sides), weights=weights))
    kl = np.average(np.exp(-token) + token - 1, weights=weights * lengths)
    assert metrics.pop("kl") == pytest.approx(kl)
    wanted = {
        "rewards/desirable": (0.5 + 2 * 1.2) / 3,
        "rewards/undesirable": 0.6,
        "rewards/margin": (0.5 + 2 * 1.2) / 3 - 0.6,
        "logps/desirable": (-1 + 2 * 1.4) / 3,
        "logps/undesirable": -0.8,
        "accuracy": accuracy,
        "saturated": 0,
        "length/reward": correlation(lengths, rewards, weights),
        "length/desirable": correlation(lengths, [1, 1, 0, 0], weights),
    }
    assert metrics == pytest.approx(wanted, abs=1e-5)


def test_what_is_measured_of_single_answers_is_the_same_in_micro_batches():
    """Of uneven labels, weights and lengths; of one micro-batch all answers are desirable."""
    draw = np.random.RandomState(0)
    mask = (np.arange(8) < draw.randint(1, 8, (6, 1, 1))).astype(np.float32)
    batch = {
        "mask": mask,
        "weights": np.float32([[1], [2], [1], [0.5], [1], [0]]),
        "scores": np.float32([[1], [1], [1], [0], [1], [0]]),
        "ref_logps": -mask,
    }
    logps = draw.standard_normal(mask.shape).astype(np.float32) * mask
    run = jax.jit(METHODS["apo_zero_unpaired"].bind({}, "hparams").terms)

    def part(rows):
        return run(Outputs(logps=logps[rows]), {name: x[rows] for name, x in batch.items()})[1]

    whole, halves = part(slice(6)), jax.tree.map(jnp.add, part(slice(3)), part(slice(3, 6)))
    for name, mean in whole.items():
        np.testing.assert_allclose(halves[name].value(), mean.value(), rtol=1e-4, err_msg=name)
    assert whole["length/reward"].value() and part(slice(3))["length/desirable"].value() == 0


PAIRS_OF = {
    "scores": (np.array([[9.0, 1], [4, 2], [0, 0]]), np.zeros(3)),
    "margins": (np.zeros((3, 2)), np.array([0.5, 1.5, 0])),
    "neither": (np.zeros((3, 2)), np.zeros(3)),
}


@pytest.mark.parametrize(
    ("given", "hparams", "said"),
    [
        ("scores", {}, "scores of 2 of 3 pairs, 5 on average, 8 at most .* are not read"),
        ("scores", {"score_margin": 0.1}, "^rewards .* 2 of 3 pairs, 0.5 on average, 0.8 at most$"),
        ("margins", {}, "^rewards .* margins of 2 of 3 pairs, 1 on average, 1.5 at most$"),
        ("neither", {}, None),
    ],
)
def test_a_reward_model_tells_what_margins_it_is_to_keep(given, hparams, said):
    told = METHODS["reward"].bind(hparams, "hparams").told(*PAIRS_OF[given])
    assert (told is None) == (said is None)
    assert said is None or re.search(said, told)


def test_scores_are_margins_where_it_is_asked_and_by_that_much():
    scores, margin = (jnp.asarray(x, jnp.float32) for x in PAIRS_OF["scores"])
    batch = {
        "valid": jnp.ones((3, 2, 4), bool),
        "weights": jnp.ones((3, 2)),
        "scores": scores,
        "margin": margin + 0.25,
    }
    rewards = jnp.array([[1.0, 0.5], [0.2, 0.1], [0, 2]])
    said = Outputs(scores=jnp.broadcast_to(rewards[..., None], (3, 2, 4)))
    for scale in (0.0, 0.1):
        bound = METHODS["reward"].bind({"score_margin": scale}, "hparams")
        found = bound.terms(said, batch)[0]["loss"][1].value()
        asked = 0.25 + scale * (scores[:, 0] - scores[:, 1])
        wanted = np.log1p(np.exp(asked - rewards[:, 0] + rewards[:, 1])).mean()
        assert found == pytest.approx(float(wanted), rel=1e-5)
    with pytest.raises(UserError, match="score_margin = -1.0: it cannot be negative"):
        METHODS["reward"].bind({"score_margin": -1.0}, "hparams")


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
    for method in ("kto", "apo_zero_unpaired"):
        scores = np.array(labels, float)[:, None]
        advice = METHODS[method].bind(hparams, "hparams").advice(scores)
        assert (advice is None) == (said is None)
        assert said is None or re.search(said, advice)
