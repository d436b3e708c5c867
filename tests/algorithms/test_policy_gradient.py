"""The policy gradient: TRL's values and gradients, denominators, metrics, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.algorithms.online import PRESETS
from ptjax.algorithms.policy_gradient import DENOMINATORS, averaged, policy_gradient
from ptjax.errors import UserError
from ptjax.losses.kl import KLS
from ptjax.losses.policy_gradient import SURROGATES
from ptjax.losses.ratios import CORRECTIONS, RATIOS
from ptjax.stages.token_advantages import high_entropy
from ptjax.types import Outputs
from tests.golden import weights
from tests.losses.checks import QUICK, Table

GOLDEN = weights.load("policy_gradient")
CASES = {
    name: {key: tuple(x) if isinstance(x, list) else x for key, x in case.items()}
    for name, case in GOLDEN["cases"].items()
}
COARSE = {"sapo": 2e-7}  # TRL's temperatures are float32


def columns(dtype, **more):
    mask = jnp.asarray(GOLDEN["mask"], dtype)
    names = ("old_logps", "ref_logps", "sampler_logps")
    return {
        **{name: jnp.asarray(GOLDEN[name], dtype) for name in names},
        "mask": mask,
        "weights": jnp.ones(mask.shape[:2], dtype),
        "advantages": jnp.asarray(GOLDEN["advantages"], dtype)[..., None] * mask,
        **more,
    }


def total(logps, settings, **more):
    """The loss, its terms added up."""
    settings = dict(settings)
    batch = columns(logps.dtype, **more)
    entropy = jnp.asarray(GOLDEN["entropy"], logps.dtype)
    if share := settings.pop("top_entropy", None):
        batch["advantages"] *= high_entropy(entropy, batch["mask"], share)
    if not settings.get("beta"):
        del batch["ref_logps"]
    terms, _ = policy_gradient(Outputs(logps=logps, entropy=entropy), batch, **settings)
    return sum(coefficient * mean.value() for coefficient, mean in terms.values())


@pytest.fixture(scope="module")
def table():
    return Table(
        lambda logps, _: {name: total(logps, case) for name, case in CASES.items()},
        GOLDEN["logps"],
        GOLDEN,
    )


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_references(table, case):
    table.check_golden(case, COARSE.get(case, 1e-10))


def test_float32_is_close(table):
    table.check_float32()


def test_every_choice_has_a_golden_case():
    def seen(name, default):
        return {case.get(name, default) for case in CASES.values()}

    assert seen("surrogate", "clipped") == set(SURROGATES)
    assert seen("ratio", "token") == set(RATIOS)
    assert seen("denominator", "sequence") == set(DENOMINATORS)
    assert seen("kl", "k3") == set(KLS)
    assert seen("correction", "none") == set(CORRECTIONS)


def test_denominators():
    """Two answers of 1 and 3 tokens, and filler."""
    mask = jnp.array([[[0.0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]])
    values = jnp.array([[[9.0, 8, 9, 9], [9, 1, 2, 3], [9, jnp.nan, 9, 9]]])
    real = jnp.array([[1.0, 1, 0]])
    wanted = {"sequence": (8 + 2) / 2, "tokens": 14 / 4, "constant": 14 / 8, "sequence_sum": 7}
    for name, value in wanted.items():
        found = jax.jit(averaged, static_argnums=3)(values, mask, real, name)
        assert found.value() == pytest.approx(value), name
    assert float(averaged(values, mask, real, "constant", 10).weight) == 20


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_weights_of_means_need_no_outputs(denominator):
    settings = dict(denominator=denominator, beta=0.1, entropy_coef=0.1, correction="token_mask")
    batch = columns(jnp.float32)

    def weighed(logps):
        terms, metrics = policy_gradient(Outputs(logps=logps, entropy=-logps), batch, **settings)
        return [mean.weight for _, mean in terms.values()], [m.weight for m in metrics.values()]

    logps = jnp.asarray(GOLDEN["logps"], jnp.float32)
    run = jax.jit(weighed, compiler_options=QUICK)
    jax.tree.map(np.testing.assert_array_equal, run(logps), run(jnp.zeros_like(logps)))


def test_without_old_log_probs_the_policy_is_its_own():
    """The first update: ratio 1, the gradient of reinforce; stale samples still weigh."""
    logps = jnp.asarray(GOLDEN["logps"], jnp.float32)

    def gradient(**settings):
        batch = columns(jnp.float32)
        del batch["old_logps"], batch["ref_logps"]
        outputs = Outputs(logps=logps, entropy=-logps)

        def loss(logps):
            terms, metrics = policy_gradient(outputs._replace(logps=logps), batch, **settings)
            return terms["policy"][1].value(), metrics

        grad, metrics = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(logps)
        return np.asarray(grad), {name: float(mean.value()) for name, mean in metrics.items()}

    wanted, _ = gradient(surrogate="reinforce")
    for surrogate in ("clipped", "cispo", "sapo", "vespo"):
        got, metrics = gradient(surrogate=surrogate)
        np.testing.assert_allclose(got, wanted, atol=1e-6, err_msg=surrogate)
        assert (metrics["ratio"], metrics["kl_old"]) == (1, 0)
    gap = (GOLDEN["logps"] - GOLDEN["sampler_logps"]) * GOLDEN["mask"]
    got, metrics = gradient(correction="token_truncate", correction_high=1e9)
    np.testing.assert_allclose(got, wanted * np.exp(gap), atol=1e-5)
    tokens = GOLDEN["mask"].sum()
    assert metrics["sampler/difference"] == pytest.approx(np.abs(gap).sum() / tokens, rel=1e-5)


@pytest.mark.parametrize("cap", [{}, {"dual_clip": 1.3}, {"ratio_cap": 1.3}])
def test_clip_fractions_are_those_of_tokens_without_gradient(cap):
    logps, mask = (jnp.asarray(GOLDEN[name], jnp.float32) for name in ("logps", "mask"))
    batch, outputs = columns(jnp.float32), Outputs(logps=logps, entropy=-logps)

    def loss(logps):
        terms, metrics = policy_gradient(outputs._replace(logps=logps), batch, **cap)
        return terms["policy"][1].value(), metrics

    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(logps)
    without = ((gradient == 0) & (mask > 0)).sum() / mask.sum()
    clipped = [mean.value() for name, mean in metrics.items() if name.startswith("clip/")]
    found = sum(clipped)
    assert len(clipped) == 2 + len(cap) and all(share > 0 for share in clipped)
    assert float(found) == pytest.approx(float(without), abs=1e-6)


def test_coefficients_of_controllers_take_the_place_of_fixed_ones():
    batch = columns(jnp.float32, kl_coef=jnp.full(3, 0.7), entropy_coef=jnp.full(3, 0.2))
    logps = jnp.asarray(GOLDEN["logps"], jnp.float32)
    terms, _ = policy_gradient(Outputs(logps=logps, entropy=-logps), batch, beta=0.1)
    assert (terms["kl"][0], terms["entropy"][0]) == (np.float32(0.7), -np.float32(0.2))


PLAIN = {
    "surrogate": "clipped",
    "ratio": "token",
    "denominator": "sequence",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": None,
    "ratio_cap": None,
    "taus": (1.0, 1.05),
    "phi_positive": (2.0, 3.0),
    "phi_negative": (3.0, 2.0),
    "baseline": "group",
    "scale": "group",
    "eps": 1e-4,
    "several": "sum_then_normalize",
    "whitened": False,
    "gamma": 1.0,
    "beta": 0.0,
    "kl": "k3",
    "kl_in": "loss",
    "kl_ratio": False,
    "kl_target": None,
    "entropy_coef": 0.0,
    "entropy_target": None,
    "top_entropy": 1.0,
    "mask_truncated": False,
    "dynamic_sampling": False,
    "correction": "none",
    "off_policy": None,
    "sync_every": 0,
    "sampler_every": 1,
}
"""What GRPO is (2402.03300, β = 0), and what a paper does not speak of is elsewhere."""
GSPO = {"clip_low": 3e-4, "clip_high": 4e-4}
ALONE = {"surrogate": "reinforce", "denominator": "sequence_sum", "scale": "none"}
PAPERS = {
    "grpo": {},
    "dr_grpo": {"denominator": "constant", "scale": "none"},
    "dapo": {"denominator": "tokens", "clip_high": 0.28, "dynamic_sampling": True},
    "gspo": {"ratio": "sequence", **GSPO},
    "gspo_token": {"ratio": "sequence_token", **GSPO},
    "cispo": {"surrogate": "cispo", "denominator": "tokens", "clip_low": 1.0, "clip_high": 4.0},
    "gmpo": {"surrogate": "gmpo", "clip_low": 0.4, "clip_high": 0.4},
    "sapo": {"surrogate": "sapo"},
    "luspo": {"ratio": "sequence", "denominator": "sequence_sum", **GSPO},
    "vespo": {"surrogate": "vespo", "denominator": "tokens"},
    "rloo": {"ratio": "sequence_sum", "baseline": "leave_one_out", "scale": "none"}
    | {"beta": 0.05, "kl": "k1", "kl_in": "reward"},
    "reinforce": {**ALONE, "baseline": "batch"},
    "reinforce_pp": {"denominator": "tokens", "baseline": "none", "scale": "none"}
    | {"whitened": True, "beta": 0.01, "kl": "k1", "kl_in": "token_reward"},
    "reinforce_pp_baseline": {"denominator": "tokens", "scale": "none", "whitened": True}
    | {"beta": 1e-3, "kl": "k2"},
    "remax": {**ALONE, "baseline": "greedy"},
    "opo": {**ALONE, "baseline": "length_weighted"},
    "gpg": {"surrogate": "reinforce", "denominator": "tokens", "scale": "signal"},
}
"""The papers' own constants once more, as numbers: nothing here is read from the package."""


def test_presets_bind_the_constants_of_their_papers():
    assert PAPERS.keys() == PRESETS.keys()
    for name, differs in PAPERS.items():
        bound = dict(METHODS[name].bind({}, "hparams").values)
        assert {key: bound[key] for key in PLAIN} == PLAIN | differs, name


OWN_LOSS = {
    "grpo": "grpo",
    "dr_grpo": "dr_grpo",
    "dapo": "dapo",
    "sapo": "sapo",
    "vespo": "vespo",
    "luspo": "luspo_tight",
    "rloo": "rloo",
    **dict.fromkeys(("reinforce", "remax", "opo"), "reinforce"),
}
"""Presets whose loss is one of the golden cases, and which."""


@pytest.fixture(scope="module")
def losses():
    """Of presets as they are bound: values and gradients."""
    length = {"dr_grpo": {"max_tokens": 9}}
    bound = {name: METHODS[name].bind(length.get(name, {}), "hparams") for name in OWN_LOSS}

    def each(logps):
        outputs, batch = Outputs(logps=logps, entropy=-logps), columns(jnp.float64)
        del batch["ref_logps"]  # β is 0 in the loss of all of them
        terms = {name: one.terms(outputs, batch)[0] for name, one in bound.items()}
        assert all(found.keys() == {"policy"} for found in terms.values())
        return {name: found["policy"][1].value() for name, found in terms.items()}

    with jax.enable_x64(True):
        run = jax.jit(lambda x: (each(x), jax.jacrev(each)(x)), compiler_options=QUICK)
        return jax.device_get(run(jnp.asarray(GOLDEN["logps"], jnp.float64)))


@pytest.mark.parametrize(("name", "case"), OWN_LOSS.items())
def test_a_preset_as_it_is_bound_has_the_references_loss(losses, name, case):
    values, gradients = losses
    assert float(values[name]) == pytest.approx(GOLDEN["values"][case], rel=1e-6)
    wanted = GOLDEN[f"grad_{case}"]
    np.testing.assert_allclose(gradients[name], wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", PRESETS)
def test_the_stages_of_presets(name):
    bound = METHODS[name].bind({}, "hparams")
    stages = [stage.name for stage in bound.stages]
    greedy = ["greedy_rewards"] if name == "remax" else []
    reference = ["ref_logps"] if PAPERS[name].get("beta") else []
    assert stages == ["rollout", *greedy, *reference, "advantage"]


def wanted_stages(**given):
    return [stage.name for stage in METHODS["grpo"].bind(given, "hparams").stages]


def test_stages_that_settings_ask_for():
    assert wanted_stages(beta=0.1) == ["rollout", "ref_logps", "advantage"]
    assert wanted_stages(beta=0.1, sync_every=8)[1:3] == ["synced_reference", "ref_logps"]
    assert wanted_stages(top_entropy=0.2) == ["rollout", "old_outputs", "advantage"]
    assert wanted_stages(entropy_target=0.2)[1:3] == ["old_outputs", "entropy_control"]
    assert wanted_stages(beta=0.1, kl_target=6.0)[2] == "kl_control"


def test_held_out_data_go_as_far_as_the_rewards_that_judge_them():
    asked = {"beta": 0.1, "kl_target": 6.0, "top_entropy": 0.2}
    for method, given in (("remax", asked), ("ppo", {}), ("raft", {})):
        bound = METHODS[method].bind(given, "hparams")
        assert len(bound.stages) > 1
        assert [stage.name for stage in bound.held_out] == ["rollout"]
    for method, given in (("dpo", {}), ("gkd_on_policy", {}), ("online_dpo", {})):
        bound = METHODS[method].bind(given, "hparams")
        assert bound.held_out == bound.stages


@pytest.mark.parametrize(("updates", "asked"), [((1, 1), False), ((2, 1), True), ((1, 4), True)])
def test_old_log_probs_only_for_several_updates(updates, asked):
    """No function of the model reads these two: they decide what stages are wanted."""
    given = dict(zip(("epochs", "minibatches"), updates, strict=True))
    assert ("old_logps" in wanted_stages(**given)) is asked
    assert "old_logps" not in wanted_stages(**given, top_entropy=0.5)


EACH = {"several": "normalize_then_sum", "scale": "batch"}


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("grpo", {"surrogate": "clip"}, "hparams.surrogate = 'clip'; did you mean 'clipped'"),
        ("grpo", {"denominator": "token"}, "did you mean 'tokens'"),
        ("grpo", {"baseline": "groups"}, "did you mean 'group'"),
        ("sapo", {"clip_high": 0.3}, "clip_high goes with surrogate clipped or cispo or gmpo"),
        ("gmpo", {"ratio": "sequence"}, "ratio goes with surrogate clipped or cispo or sapo"),
        ("grpo", {"taus": (1.0, 2.0)}, "taus goes with surrogate sapo, not with 'clipped'"),
        ("sapo", {"taus": (1.0,)}, "it must be two positive numbers"),
        ("grpo", {"dual_clip": 0.5}, "dual_clip = 0.5: it must be above 1"),
        ("dapo", {"ratio_cap": 1.25}, "it must be above 1 \\+ clip_high"),
        ("grpo", {"beta": -0.1}, "beta = -0.1: it must be not negative"),
        ("grpo", {"kl_in": "reward"}, "it sets where beta goes"),
        ("grpo", {"kl_ratio": True}, "it goes with beta > 0"),
        ("grpo", {"kl_target": 6.0}, "it moves beta, which is to begin above 0"),
        ("vespo", {"correction": "token_mask"}, "vespo weighs whole sequences itself"),
        ("grpo", {"several": "normalize_then_sum"}, "goes with baseline = 'group' and scale"),
        ("grpo", {**EACH, "beta": 0.1, "kl_in": "reward"}, "leaves no sum that KL could be"),
        ("grpo", {"baseline": "greedy"}, "a group of one reward has no deviation"),
        ("grpo", {"baseline": "batch"}, "goes with baseline = 'group' or 'leave_one_out'"),
        ("gmpo", {"top_entropy": 0.2}, "gmpo is of whole sequences"),
        ("grpo", {"top_entropy": 0.0}, "it must be in \\(0, 1\\]"),
        ("grpo", {"gamma": 1.5}, "it must be in \\[0, 1\\]"),
        ("grpo", {"correction_high": 0.0}, "it must be above correction_low"),
        ("grpo", {"correction_high": 5.0}, "correction_high is not read where correction = 'none'"),
        ("ppo", {"correction_low": 0.5}, "correction_low is not read where correction = 'none'"),
        ("grpo", {"sync_every": 8}, "sync_every is not read where beta = 0"),
        ("rloo", {"sync_alpha": 0.5}, "sync_alpha is not read where sync_every = 0"),
        ("rloo", {"sync_every": -1}, "sync_every = -1: it must be not negative"),
        ("rloo", {"sync_every": 8, "sync_alpha": 1.5}, "sync_alpha = 1.5: it must be in"),
        ("dapo", {"max_rounds": 0}, "max_rounds = 0: it must be at least 1"),
        ("raft", {"max_rounds": 2}, "max_rounds is not read where dynamic_sampling = False"),
    ],
)
def test_what_has_no_meaning_is_refused(method, given, message):
    with pytest.raises(UserError, match=message):
        METHODS[method].bind(given, "hparams")
