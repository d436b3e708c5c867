"""Pair losses on arrays: TRL's values and gradients, closed forms, invariances, extremes."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms import METHODS
from ptjax.losses.pair import (
    F_DIVERGENCES,
    Pair,
    f_score,
    ld_weights,
    with_f_divergence,
    wpo_weight,
)
from ptjax.losses.preference import COUPLED, F_DIVERGENCE_LOSSES, PAIR_LOSSES, options
from ptjax.losses.reference_free import REFERENCE_FREE, alphapo, simpo
from ptjax.types import Outputs
from tests.losses.checks import GOLDEN, Table, given, minimised, rows

LOSSES = {**PAIR_LOSSES, **REFERENCE_FREE}
CASES = GOLDEN["cases"]["pairs"] | GOLDEN["cases"]["reference_free"]


def bound(loss, *, nll_weight=None, nll_of="mask", **settings):
    """A golden case's method; the likelihood beside a loss has other words in the cases."""
    if isinstance(loss, list) or loss not in REFERENCE_FREE:
        return METHODS["dpo"].bind({"loss": loss, **settings}, "hparams")
    if nll_weight is not None:
        settings["cpo_alpha"] = nll_weight
    if nll_of == "valid":
        settings["nll_prompt"] = True
    return METHODS[loss].bind(settings, "hparams")


BOUND = {name: bound(**case) for name, case in CASES.items()}
# In float32 inside TRL: the α-divergence's scores, ORPO's odds, EXO's label smoothing.
COARSE = {"alpha", "alpha_far", "orpo", "orpo_prompt", "exo_pair", "exo_pair_soft", "js_exo"}


def columns(dtype):
    """The golden pairs as a batch."""
    return {
        "valid": given("valid", bool),
        "mask": given("mask", dtype),
        "weights": jnp.ones(GOLDEN["mask"].shape[:2], dtype),
        "ref_logps": given("ref_logps", dtype),
    }


def means(logps, frozen):
    """Every case's loss by its method, as a run computes it, from per-token log-probabilities.

    WPO's weights get no gradient: they are those of `frozen`.
    """
    batch = columns(logps.dtype)
    outputs = Outputs(logps=logps, sum_squares=given("sum_squares", logps.dtype) + (logps - frozen))
    return {name: minimised(method, outputs, batch) for name, method in BOUND.items()}


@pytest.fixture(scope="module")
def table():
    return Table(means, GOLDEN["logps"])


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_trls(table, case):
    table.check_golden(case, rtol=2e-6 if case in COARSE else 1e-10)


def test_finite_differences_in_float64(table):
    table.check_finite_differences()


def test_float32_is_close(table):
    table.check_float32()


def test_bfloat16_is_within_its_rounding(table):
    table.check_bfloat16()


def test_every_loss_has_a_golden_case():
    names = [case["loss"] for case in CASES.values()]
    flat = {n for name in names for n in ([name] if isinstance(name, str) else name)}
    assert flat == {*LOSSES, "sft"}
    divergences = {case.get("f_divergence", "reverse_kl") for case in CASES.values()}
    assert divergences == set(F_DIVERGENCES)


def test_a_methods_defaults_are_those_of_its_losses():
    """What a method says again, what it leaves to the loss by None, and weights of 1."""
    batch = columns(jnp.float32)

    @jax.jit
    def by_method_and_by_loss(logps):
        pair = Pair.of(logps, batch["ref_logps"], batch["mask"], batch["weights"])

        def value(method, **settings):
            return minimised(METHODS[method].bind(settings, "hparams"), Outputs(logps=logps), batch)

        one = [
            value(name, cpo_alpha=0.0) if name in REFERENCE_FREE else value("dpo", loss=name)
            for name in LOSSES
        ]
        other = [loss(pair).mean() for loss in LOSSES.values()]
        one.append(value("dpo", loss=("hinge", "sft")))
        other.append(value("dpo", loss="hinge") + value("dpo", loss="sft"))
        return jnp.stack(one), jnp.stack(other)

    np.testing.assert_allclose(*by_method_and_by_loss(given("logps", jnp.float32)), rtol=1e-5)
    likelihoods = {name: METHODS[name].hyperparameters()["cpo_alpha"] for name in REFERENCE_FREE}
    assert likelihoods == {"cpo": 1, "simpo": 0, "alphapo": 0, "orpo": 1}


def pairs(a, b, *, chosen=None, rejected=None, lengths=(3.0, 5.0), weights=None):
    """Pairs of given log-ratios."""
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    full = jnp.full_like(a, 1.0)
    return Pair(
        a,
        b,
        a if chosen is None else jnp.asarray(chosen, jnp.float32),
        b if rejected is None else jnp.asarray(rejected, jnp.float32),
        lengths[0] * full,
        lengths[1] * full,
        full if weights is None else jnp.asarray(weights, jnp.float32),
    )


LN2 = np.log(2)
AT_REFERENCE = {
    "sigmoid": LN2,
    "robust": LN2,
    "hinge": 1,
    "ipo": 25,
    "exo_pair": -LN2 - (np.log(0.999) + np.log(0.001)) / 2,
    "nca_pair": 2 * LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 50,
    "aot": LN2,
    "aot_unpaired": LN2,
    "apo_zero": 1,
    "apo_down": 1,
    "discopop": (LN2 + 1) / 2,
    "sigmoid_norm": LN2,
    "cpo": LN2,
    "simpo": np.log1p(np.exp(1)),
    "alphapo": np.log1p(np.exp(1)),
    "orpo": 0.1 * LN2,
}


@pytest.mark.parametrize("name", LOSSES)
def test_closed_form_where_both_sides_are_as_the_reference(name):
    like = {"chosen": [-6.0, -6.0], "rejected": [-10.0, -10.0]}
    if name == "cpo":
        like["rejected"] = like["chosen"]
    values = LOSSES[name](pairs([0, 0], [0, 0], **like))
    np.testing.assert_allclose(values, AT_REFERENCE[name], rtol=1e-6)


def test_label_smoothing_by_half_forgets_the_label():
    """At e = ½ both orders of a pair cost the same; robust at e = 0 is DPO."""
    right, wrong = pairs([2.0], [-1.0]), pairs([-1.0], [2.0])
    for name in ("sigmoid", "exo_pair", "aot", "aot_unpaired", "cpo"):
        losses = [LOSSES[name](pair, label_smoothing=0.5) for pair in (right, wrong)]
        np.testing.assert_allclose(*losses, rtol=1e-6)
        losses = [LOSSES[name](pair, label_smoothing=0.1) for pair in (right, wrong)]
        assert losses[0] < losses[1]
    np.testing.assert_allclose(PAIR_LOSSES["robust"](right), PAIR_LOSSES["sigmoid"](right))


def test_f_divergences_agree_where_their_formulas_meet():
    x = jnp.linspace(-3, 3, 7)
    score = {name: f_score(x, f_divergence=name) for name in F_DIVERGENCES}
    np.testing.assert_array_equal(score["reverse_kl"], x)
    np.testing.assert_allclose(score["forward_kl"], 1 - np.exp(-x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        f_score(x, f_divergence="alpha", f_alpha=0.0), score["forward_kl"], rtol=1e-5
    )
    for alpha, rtol in ((1.0, 0), (1 + 1e-5, 1e-4)):
        near = f_score(x, f_divergence="alpha", f_alpha=alpha)
        np.testing.assert_allclose(near, x, rtol=rtol)
    slopes = {"reverse_kl": 1, "forward_kl": 1, "js": 0.5, "alpha": 1}
    for name, slope in slopes.items():
        value, got = jax.value_and_grad(lambda x, n=name: f_score(x, f_divergence=n))(0.0)
        np.testing.assert_allclose((value, got), (0, slope), atol=1e-6)
    with pytest.raises(ValueError, match="'kl' is none of reverse_kl, forward_kl"):
        f_score(x, f_divergence="kl")


def test_alphapo_nears_simpo():
    pair = pairs([-6.0, -2], [-3.0, -9])
    np.testing.assert_allclose(alphapo(pair, alpha=1e-4), simpo(pair), rtol=1e-3)


def test_losses_that_take_f_divergences_see_a_difference():
    """What adds a constant to both rewards must not change them, as f' leaves one open."""
    base, shifted = pairs([2.0], [-1.0]), pairs([5.0], [2.0])
    lengths = {"chosen_length": base.a / base.a, "rejected_length": base.a / base.a}
    base, shifted = base._replace(**lengths), shifted._replace(**lengths)
    blind = {
        name
        for name, loss in PAIR_LOSSES.items()
        if name not in COUPLED and np.allclose(loss(base), loss(shifted))
    }
    assert blind == set(F_DIVERGENCE_LOSSES)


@rows
def each(logps, ref_logps, mask, weights):
    """Every loss of every pair [loss, B], and its share of the mean's gradient [loss, B, 2, T]."""
    pair = Pair.of(logps, ref_logps, mask, weights)
    share = pair.weights / pair.weights.sum()
    return jnp.stack([jnp.where(share == 0, 0, loss(pair)) * share for loss in LOSSES.values()])


@pytest.fixture(scope="module")
def batch():
    """Six pairs of unlike lengths, and what `each` says of them."""
    names = ("logps", "ref_logps", "mask")
    arrays = [*(GOLDEN[name].astype(np.float32) for name in names), np.ones((6, 2), np.float32)]
    return arrays, run(arrays)


def run(arrays):
    return jax.device_get(each(*map(jnp.asarray, arrays)))


def same(got, wanted):
    """Values and gradients agree as far as float32 sums in another order do."""
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def spread(arrays, places):
    """The pairs at the given rows of a batch of nine, filler elsewhere."""
    wide = [np.zeros((9, *x.shape[1:]), np.float32) for x in arrays]
    for to, x in zip(wide, arrays, strict=True):
        to[places] = x
    return wide


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5], [0, 2, 3, 5, 6, 8], [7, 1, 3, 8, 0, 5]])
def test_neither_order_nor_filler_matters(batch, places):
    arrays, wanted = batch
    got = run(spread(arrays, places))
    same([x[:, places] for x in got], wanted)
    filler = np.setdiff1d(np.arange(9), places)
    assert not any(x[:, filler].any() for x in got)


@pytest.mark.parametrize("shift", [1, 3])
def test_padding_does_not_matter(batch, shift):
    """Tokens moved towards the end; what stands outside the mask is not read."""
    arrays, wanted = batch
    moves = ~arrays[2][..., -shift:].any((1, 2))
    assert moves.sum() > 2
    moved = [np.where(arrays[2] > 0, x, np.nan) for x in arrays[:2]] + [arrays[2].copy()]
    for x in moved:
        x[moves] = np.roll(x[moves], shift, -1)
    values, gradients = (x[:, :6].copy() for x in run(spread([*moved, arrays[3]], np.arange(6))))
    gradients[:, moves] = np.roll(gradients[:, moves], -shift, -1)
    same((values, gradients), wanted)


def test_pairs_one_at_a_time_are_the_batch_save_where_coupled(batch):
    arrays, (values, _) = batch
    alone = [run(spread([x[i : i + 1] for x in arrays], [4]))[0][:, 4] for i in range(6)]
    differ = ~np.isclose(np.stack(alone, 1) / 6, values, rtol=1e-4).all(1)
    assert {name for name, yes in zip(LOSSES, differ, strict=True) if yes} == COUPLED


def test_aot_puts_each_rank_where_its_pair_stands():
    a, chosen = [4.0, 9.0, 1.0, 7.0], [-1.0, -5.0, -3.0, -9.0]
    pair = pairs(a, [0, 0, 0, 0], chosen=chosen, rejected=[0] * 4, weights=[1, 0, 1, 1])
    gaps = np.array([-1 - -4.0, 0, -3 - -5, -9 - -16])  # policy -9 -3 -1, reference -16 -5 -4
    for values, wanted in (
        (PAIR_LOSSES["aot"](pair, beta=1.0), gaps),
        (PAIR_LOSSES["aot_unpaired"](pair, beta=1.0), np.array([4.0, 0, 1, 7])),
    ):
        np.testing.assert_allclose(values, np.log1p(np.exp(-wanted)), rtol=1e-5)


FAR = np.array(list(itertools.product((-1000.0, 0.0, 1000.0), repeat=2)), np.float32)


def assert_finite(losses, pair):
    """Values and gradients with respect to all log-probabilities."""

    def values(x: jax.Array):
        moved = pair._replace(a=x[0], b=x[1], chosen_logps=x[2], rejected_logps=x[3])
        return jnp.stack([loss(moved) for loss in losses.values()])

    x = jnp.stack([pair.a, pair.b, pair.chosen_logps, pair.rejected_logps])
    for name, row, gradient in zip(losses, *rows(values)(x), strict=True):
        assert np.isfinite(row).all() and np.isfinite(gradient).all(), name


def test_finite_at_log_ratios_of_a_thousand():
    chosen, rejected = (np.minimum(x, 0) for x in FAR.T)
    pair = pairs(*FAR.T, chosen=chosen, rejected=rejected, lengths=(1.0, 1.0))
    assert_finite({name: partial(loss, beta=1.0) for name, loss in LOSSES.items()}, pair)


def test_f_divergences_are_finite_there():
    """IPO squares what already fills float32's range: there the formula itself is not finite."""

    def composed(name, divergence):
        return lambda pair: PAIR_LOSSES[name](with_f_divergence(pair, f_divergence=divergence))

    names = sorted(set(F_DIVERGENCE_LOSSES) - {"ipo"})
    both = itertools.product(names, F_DIVERGENCES)
    assert_finite({f"{n} {d}": composed(n, d) for n, d in both}, pairs(*FAR.T))


def test_tail_weights():
    mask = jnp.array([[[0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0]], [[0, 1, 0, 1, 0, 0]] * 2])
    got = ld_weights(mask.astype(jnp.float32), alpha=0.3)
    wanted = np.array(mask, np.float32)
    wanted[0, 0, 3:5] = 0.3
    np.testing.assert_allclose(got, wanted)


def test_wpo_weight_is_one_for_typical_tokens_and_has_no_gradient():
    squares = jnp.log(jnp.array([[0.5, 0.3, 9.0]]))
    mask = jnp.array([[1.0, 1.0, 0.0]])
    np.testing.assert_allclose(wpo_weight(squares, squares, mask), 1)
    half = wpo_weight(squares - jnp.log(2.0), squares, mask)
    np.testing.assert_allclose(half, 0.5, rtol=1e-6)
    gradient = jax.grad(lambda x: wpo_weight(x, squares, mask).sum())(squares)
    assert not np.asarray(gradient).any()


def test_options_are_the_keywords_beside_beta():
    assert options("sigmoid") == ("label_smoothing",)
    assert options("ipo") == ("length_normalized",)
    assert options("discopop") == ("tau",)
    assert options("hinge") == ()
