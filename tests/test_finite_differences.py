"""The gradients of a loss through the model, packed and accumulated, are its slopes in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.forward import ForwardOptions, forward
from ptjax.models.compute import Compute
from tests import test_judged_invariances as judged
from tests import toy
from tests.test_invariances import CASES, EXAMPLES

STEP = 1e-5
OPTIONS = ForwardOptions(Compute(dtype="float64"), head_chunk=32)


@pytest.fixture(scope="module")
def wide():
    """The toy models' by head, while all that the package keeps in float32 is kept in float64."""
    narrow = {head: toy.params(head=head) for head in ("lm", "score")}
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(jnp, "float32", jnp.float64)
        yield {
            head: {name: jnp.asarray(leaf, jnp.float64) for name, leaf in params.items()}
            for head, params in narrow.items()
        }


@pytest.fixture(scope="module")
def params(wide):
    return wide["lm"]


def widened(columns):
    """Columns of numbers in float64."""
    return {k: np.float64(v) if v.dtype == np.float32 else v for k, v in columns.items()}


@pytest.fixture(scope="module")
def columns():
    return widened(toy.packed(EXAMPLES, accumulate=2))


def evaluate(columns, params, **hparams):
    return toy.loss_and_gradients(
        columns, params_=params, accumulate=2, dtype=OPTIONS.compute.dtype, **hparams
    )


def held(columns, params):
    """DFT with p_t held: the likelihood with mask · p_t in the place of the mask, rescaled."""
    run = functools.partial(forward, toy.MODEL, options=OPTIONS)
    plain = {name: jnp.asarray(column) for name, column in columns.items() if name != "pack"}
    logps = jax.jit(run, compiler_options=toy.QUICK)(params, plain).logps
    weighted = columns | {"mask": columns["mask"] * np.exp(np.asarray(logps))}
    weights = columns["weights"][..., None]
    share = (weighted["mask"] * weights).sum() / (columns["mask"] * weights).sum()
    return lambda params: share * evaluate(weighted, params)[0]


@pytest.mark.parametrize("case", CASES)
def test_every_leafs_gradient_is_the_slope_of_the_loss(params, columns, case):
    loss, gradients = evaluate(columns, params, **CASES[case])
    if case == "dft":
        value = held(columns, params)
    else:

        def value(params):
            return evaluate(columns, params, **CASES[case])[0]

    assert loss.dtype == np.float64
    np.testing.assert_allclose(value(params), loss, rtol=1e-13)
    state = np.random.RandomState(0)
    for name, leaf in params.items():
        way = state.standard_normal(leaf.shape)
        way /= np.linalg.norm(way)
        ahead, behind = (value({**params, name: leaf + s * way}) for s in (STEP, -STEP))
        size = np.linalg.norm(gradients[name])
        assert gradients[name].dtype == np.float64 and size > 1e-3, name
        slope, difference = (gradients[name] * way).sum(), (ahead - behind) / (2 * STEP)
        np.testing.assert_allclose(slope, difference, atol=1e-8 * size, err_msg=name)


@pytest.mark.parametrize("name", ["dpo, mixed", "reward", "embed"])
def test_losses_of_judged_answers_along_a_way_of_all_leaves(wide, name):
    """Pairs with a token mean beside them, a scalar head, pooled states."""
    case = (judged.CASES | judged.COUPLED)[name]
    accumulate = 1 if name in judged.COUPLED else 2
    params = wide["score" if name == "reward" else "lm"]
    batch = widened(judged.packed(judged.answers(case[0]), accumulate=accumulate))

    def run(params):
        given = dict(params=params, accumulate=accumulate, dtype=OPTIONS.compute.dtype)
        return judged.loss_and_gradients(case, batch, **given)

    loss, gradients = run(params)
    assert loss.dtype == np.float64 and gradients["layers.q"].dtype == np.float64
    state = np.random.RandomState(0)
    for _ in range(3):
        way = {key: state.standard_normal(leaf.shape) for key, leaf in params.items()}
        long = np.sqrt(sum((part**2).sum() for part in way.values()))
        way = {key: part / long for key, part in way.items()}
        ahead, behind = (
            run({key: leaf + s * way[key] for key, leaf in params.items()})[0]
            for s in (STEP, -STEP)
        )
        slope = sum((gradient * way[key]).sum() for key, gradient in gradients.items())
        size = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * STEP), atol=1e-8 * size)
    assert size > 1e-3
