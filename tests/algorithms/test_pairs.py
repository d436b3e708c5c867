"""What is measured of preference pairs, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.types import Outputs

# Two pairs: the chosen side gains 2 nats over 4 tokens, then loses 1 over 1; the rejected side
# gains 1 over 1, then loses 2 over 4.
LONG, SHORT = [0.0, 1, 1, 1, 1], [0.0, 1, 0, 0, 0]
MASK = jnp.array([[LONG, SHORT], [SHORT, LONG]])
GAIN = jnp.array([[0.5, 1.0], [-1.0, -0.5]])[..., None] * MASK
BATCH = {"mask": MASK, "weights": jnp.ones([2, 2]), "ref_logps": -1.0 * MASK}
OUTPUTS = Outputs(logps=BATCH["ref_logps"] + GAIN)


def measured(**hparams):
    _, metrics = jax.jit(METHODS["dpo"].bind(hparams, "hparams").terms)(OUTPUTS, BATCH)
    return {name: float(mean.value()) for name, mean in metrics.items()}


def test_rewards_and_warning_signs():
    found = measured(beta=0.5)
    assert found["rewards/chosen"] == pytest.approx(0.5 * (2 - 1) / 2)
    assert found["rewards/rejected"] == pytest.approx(0.5 * (1 - 2) / 2)
    assert found["rewards/margin"] == pytest.approx(0.5)
    assert found["accuracy"] == 1
    assert found["logps/chosen"] == pytest.approx((-2 - 2) / 2)
    assert found["both_fall"] == 0.5
    assert found["longer/preferred"] == 0.5 and found["longer/chosen"] == 0.5
    assert found["longer/reward"] == pytest.approx(0.5 * (2 - 2) / 2)
    assert found["shorter/reward"] == pytest.approx(0.5 * (1 - 1) / 2)
    assert found["saturated"] == 0
    assert measured(beta=10.0)["saturated"] == 1


def test_drift_is_from_the_reference_to_the_policy():
    """Tokens of +½ and +1 nat in the one pair, of -1 and -½ in the other, which weighs thrice."""
    batch = BATCH | {"weights": jnp.array([[1.0, 1], [3, 3]])}
    _, metrics = jax.jit(METHODS["dpo"].bind({}, "hparams").terms)(OUTPUTS, batch)
    tokens = np.repeat([0.5, 1, -1, -0.5], [4, 1, 3, 12])
    wanted = np.mean(np.exp(-tokens) + tokens - 1)
    assert float(metrics["kl"].value()) == pytest.approx(wanted)


def test_log_probs_and_drift_are_of_whole_answers_whatever_the_loss_weighs():
    plain, desensitised = measured(), measured(ld_alpha=0.2)
    for name in ("logps/chosen", "logps/rejected", "both_fall", "kl"):
        assert desensitised[name] == plain[name]
    assert desensitised["rewards/chosen"] != plain["rewards/chosen"]


@pytest.mark.parametrize(
    ("hparams", "by_length"),
    [
        ({"loss": "sigmoid_norm"}, True),
        ({"loss": "ipo"}, True),
        ({"loss": ("sigmoid_norm", "sft")}, True),
        ({"loss": "ipo", "length_normalized": False}, False),
        ({"loss": ("sigmoid", "sigmoid_norm")}, False),
        ({"loss": "sft"}, False),
    ],
)
def test_rewards_are_per_token_where_the_loss_is(hparams, by_length):
    found = measured(beta=1.0, **hparams)
    chosen, rejected = ((0.5 - 1) / 2, (1 - 0.5) / 2) if by_length else (0.5, -0.5)
    assert found["rewards/chosen"] == pytest.approx(chosen)
    assert found["rewards/rejected"] == pytest.approx(rejected)
    assert found["accuracy"] == (0 if by_length else 1)
    assert found["both_fall"] == 0.5


@pytest.mark.parametrize("hparams", [{"loss": "sigmoid"}, {"loss": "sigmoid_norm"}])
def test_rewards_are_those_of_the_f_divergence(hparams):
    """f' = 1 - 1/r of forward KL, of both log-ratios: what the loss sees is what saturates."""
    found = measured(beta=1.0, f_divergence="forward_kl", **hparams)
    ratios, lengths = np.array([[2.0, 1.0], [-1.0, -2.0]]), np.array([[4, 1], [1, 4]])
    scores = 1 - np.exp(-ratios)
    seen = scores / lengths if "norm" in hparams["loss"] else scores
    margins = seen[:, 0] - seen[:, 1]
    assert found["rewards/margin"] == pytest.approx(margins.mean(), rel=1e-5)
    assert found["rewards/chosen"] == pytest.approx(seen[:, 0].mean(), rel=1e-5)
    assert found["saturated"] == np.mean(1 / (1 + np.exp(margins)) < 0.01)
    assert found["saturated"] == (0.5 if hparams["loss"] == "sigmoid" else 0)
    assert found["both_fall"] == 0.5


def test_wpo_weighs_pairs_and_not_the_likelihood_beside_them():
    said = OUTPUTS._replace(sum_squares=0 * MASK)
    both = {"loss": ("sigmoid", "sft")}
    terms = [METHODS["dpo"].bind({**both, "wpo": wpo}, "hparams").terms for wpo in (False, True)]
    plain, weighed = (
        {name: float(mean.value()) for name, (_, mean) in jax.jit(made)(said, BATCH)[0].items()}
        for made in terms
    )
    assert weighed["sft"] == plain["sft"] and weighed["sigmoid"] < 0.9 * plain["sigmoid"]


def test_orpo_takes_the_prompts_likelihood_where_it_is_asked():
    """Chosen sequences of 5 and 3 tokens, answers of 4 and 1; the first token of each has none."""
    valid = jnp.array([[5 * [True], 5 * [True]], [[True] * 3 + [False] * 2, 5 * [True]]])
    batch = BATCH | {"valid": valid, "mask": MASK}
    logps = jnp.where(valid, -1.0, 0.0).at[:, :, 0].set(0) * jnp.array([[[1.0]], [[3.0]]])
    said = Outputs(logps=logps)
    likelihoods = {}
    for nll_prompt in (False, True):
        bound = METHODS["orpo"].bind({"nll_prompt": nll_prompt}, "hparams")
        assert dict(bound.forward) == {"everywhere": nll_prompt}
        terms, _ = bound.terms(said, batch)
        likelihoods[nll_prompt] = float(terms["sft"][1].value())
        preference = float(terms["preference"][1].value())
    assert likelihoods[False] == pytest.approx((4 * 1 + 1 * 3) / 5)
    assert likelihoods[True] == pytest.approx((4 * 1 + 2 * 3) / 6)
    answers = METHODS["orpo"].bind({}, "hparams").terms(Outputs(logps=logps * MASK), batch)[0]
    assert preference == float(answers["preference"][1].value())


def reference_free(method, **hparams):
    """Of two pairs whose answers have a mean log-prob a token of -0.5 and -1, of -2 and -1.5."""
    mean = jnp.array([[-0.5, -1.0], [-2.0, -1.5]])
    said = Outputs(logps=mean[..., None] * MASK)
    _, metrics = jax.jit(METHODS[method].bind(hparams, "hparams").terms)(said, BATCH)
    return np.asarray(mean), {name: float(value.value()) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("method", "hparams", "reward", "gamma", "saturated"),
    [
        ("simpo", {"beta": 12.0}, lambda x: 12 * x, 6.0, 0),
        ("simpo", {"beta": 12.0, "gamma_beta_ratio": 0.0}, lambda x: 12 * x, 0.0, 0.5),
        (
            "alphapo",
            {"beta": 6.0, "alpha": -2.0, "gamma_beta_ratio": 0.0},
            lambda x: 6 * (1 - np.exp(2 * x)) / -2,
            0.0,
            0,
        ),
        ("orpo", {"beta": 0.1}, lambda x: x - np.log1p(-np.exp(x)), 0.0, 0),
    ],
)
def test_without_a_reference_rewards_are_what_the_loss_compares(
    method, hparams, reward, gamma, saturated
):
    mean, found = reference_free(method, **hparams)
    seen = reward(mean)
    margins = seen[:, 0] - seen[:, 1]
    assert found["rewards/chosen"] == pytest.approx(seen[:, 0].mean(), rel=1e-5)
    assert found["rewards/margin"] == pytest.approx(margins.mean(), rel=1e-5)
    assert found["saturated"] == np.mean(1 / (1 + np.exp(margins - gamma)) < 0.01) == saturated
    assert found["accuracy"] == 0.5
