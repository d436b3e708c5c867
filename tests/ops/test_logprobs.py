"""The chunked head = a naive softmax over everything, values and gradients, in every way to ask."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ptjax.ops.logprobs import FIELDS, token_stats

S, M, D, V = 2, 11, 6, 23
STATE = np.random.RandomState(0)
HIDDEN = jnp.asarray(STATE.standard_normal((S, M, D)), jnp.float32)
KERNEL = jnp.asarray(STATE.standard_normal((D, V)), jnp.float32)
TARGETS = jnp.asarray(STATE.randint(0, V, (S, M)))
SCORED = jnp.asarray(STATE.rand(S, M) < 0.6).at[0].set(True)
WEIGHTS = jnp.asarray(STATE.rand(S, M), jnp.float32)


def naive(hidden, kernel, scored=SCORED, *, softcap=None, temperature=1.0):
    logits = hidden @ kernel
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    logits = logits / temperature
    logps = jax.nn.log_softmax(logits)
    values = {
        "logps": jnp.take_along_axis(logps, TARGETS[..., None], -1)[..., 0],
        "logsumexp": jax.nn.logsumexp(logits, -1),
        "mean_logps": jnp.mean(logps, -1),
        "entropy": -jnp.sum(jnp.exp(logps) * logps, -1),
        "sum_squares": jnp.log(jnp.sum(jnp.exp(logps) ** 2, -1)),
        "correct": (jnp.argmax(logits, -1) == TARGETS).astype(jnp.float32),
    }
    return {name: jnp.where(scored, value, 0) for name, value in values.items()}


def pulled(function, hidden, kernel, fields):
    """The fields, and the gradients of a random combination of them."""

    def loss(hidden, kernel):
        values = function(hidden, kernel)
        mixed = [(i + 1) * jnp.sum(jnp.sin(values[f]) * WEIGHTS) for i, f in enumerate(fields)]
        return sum(mixed), {f: values[f] for f in fields}

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    gradients, values = run(hidden, kernel)
    return values, *gradients


def assert_close(got, wanted, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), got, wanted)


@pytest.mark.parametrize(
    ("chunk", "settings"),
    [(4, {}), (4096, dict(temperature=0.7)), (5, dict(softcap=2.0, temperature=1.3))],
)
def test_recomputed_is_naive(chunk, settings):
    got = pulled(
        lambda h, k: token_stats(h, k, TARGETS, SCORED, fields=FIELDS, chunk=chunk, **settings),
        *(HIDDEN, KERNEL, FIELDS),
    )
    assert_close(got, pulled(functools.partial(naive, **settings), HIDDEN, KERNEL, FIELDS))
    assert not got[0]["logps"][~SCORED].any()


@pytest.mark.parametrize("vocab_first", [False, True])
def test_eager_is_naive(vocab_first):
    def loss(stats, hidden, kernel):
        return -3.5 * jnp.sum(stats(hidden, kernel)["logps"] * WEIGHTS)

    def ours(hidden, kernel, **settings):
        kernel = kernel.T if vocab_first else kernel
        return token_stats(
            hidden, kernel, TARGETS, SCORED, vocab_first=vocab_first, chunk=4, **settings
        )

    both = jax.value_and_grad(loss, argnums=(1, 2))
    wanted = jax.jit(lambda h, k: both(naive, h, k))(HIDDEN, KERNEL)
    for settings in (dict(linear=WEIGHTS), {}):
        got = jax.jit(lambda h, k, s=settings: both(functools.partial(ours, **s), h, k))
        assert_close(got(HIDDEN, KERNEL), wanted)


@pytest.mark.parametrize("scored", [np.zeros((S, M), bool), np.eye(S, M, dtype=bool)])
def test_few_or_none_scored(scored):
    scored = jnp.asarray(scored)

    def ours(hidden, kernel, linear=None):
        return token_stats(hidden, kernel, TARGETS, scored, chunk=3, linear=linear)

    wanted = pulled(lambda h, k: naive(h, k, scored), HIDDEN, KERNEL, ("logps",))
    assert_close(pulled(ours, HIDDEN, KERNEL, ("logps",)), wanted)
    eager = jax.grad(lambda h: jnp.sum(ours(h, KERNEL, WEIGHTS)["logps"] * WEIGHTS))(HIDDEN)
    plain = jax.grad(lambda h: jnp.sum(naive(h, KERNEL, scored)["logps"] * WEIGHTS))(HIDDEN)
    assert_close(eager, plain)


def test_finite_differences():
    def logps(hidden, kernel):
        asked = dict(fields=("logps", "entropy", "sum_squares"), chunk=4, softcap=3.0)
        arrays = (jnp.asarray(x) for x in (hidden, kernel, TARGETS, SCORED))
        stats = token_stats(*arrays, **asked)
        return stats["logps"] + stats["entropy"] + stats["sum_squares"]

    check_grads(jax.jit(logps), (HIDDEN, KERNEL), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_sum_of_squares_where_probabilities_leave_float32():
    """Equal logits: log V · (1/V)² = -log V. Far ones: 0, with a finite gradient."""

    def squares(scale):
        kernel = jnp.zeros((D, V)).at[0, 0].set(scale)
        hidden = jnp.zeros((S, M, D)).at[..., 0].set(1.0)
        stats = token_stats(hidden, kernel, TARGETS, SCORED, fields=("sum_squares",))
        return stats["sum_squares"][0, 0]

    value, gradient = jax.vmap(jax.value_and_grad(squares))(jnp.array([0.0, 400.0, -400.0]))
    np.testing.assert_allclose(value, [-np.log(V), 0.0, -np.log(V - 1)], atol=1e-6)
    assert np.isfinite(gradient).all()


def test_bfloat16_keeps_float32_statistics():
    got = token_stats(HIDDEN.astype(jnp.bfloat16), KERNEL, TARGETS, SCORED, chunk=4)["logps"]
    assert got.dtype == jnp.float32
    exact = naive(
        HIDDEN.astype(jnp.bfloat16).astype(jnp.float32),
        KERNEL.astype(jnp.bfloat16).astype(jnp.float32),
    )
    np.testing.assert_allclose(got, exact["logps"], atol=1e-4)


def shapes_in(function, *argnums):
    """The shapes of all float buffers of a compiled gradient."""
    text = jax.jit(jax.grad(function, argnums)).lower(HIDDEN, KERNEL).compile().as_text()
    found = re.findall(r"\bf32\[([\d,]+)\]", text)
    return {tuple(int(size) for size in shape.split(",")) for shape in found}


@pytest.mark.parametrize("linear", [None, WEIGHTS])
def test_compiled_gradients_hold_no_logits_and_nothing_for_a_frozen_kernel(linear):
    def loss(hidden, kernel):
        stats = token_stats(hidden, kernel, TARGETS, SCORED, chunk=4, linear=linear)
        return jnp.sum(stats["logps"] * WEIGHTS)

    frozen, trained = shapes_in(loss, 0), shapes_in(loss, 0, 1)
    assert max(math.prod(shape) for shape in frozen | trained) < S * M * V
    assert (S, D, V) in trained
    assert not {shape for shape in frozen if sorted(shape) == sorted((S, D, V))}

    def everything(hidden, kernel):
        return jnp.sum(naive(hidden, kernel)["logps"] * WEIGHTS)

    assert max(math.prod(shape) for shape in shapes_in(everything, 0)) >= S * M * V
