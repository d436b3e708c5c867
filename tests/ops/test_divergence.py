"""Divergence to a teacher: TRL's numbers, the dense form, what is bounded, what is never there."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ptjax.ops.divergence import Divergence, Teacher, logit_divergence, token_divergence
from tests.golden import weights

GOLDEN = weights.load("divergence")
S, M, D, E, V = 2, 11, 6, 5, 23
STATE = np.random.RandomState(0)
HIDDEN, KERNEL = (
    jnp.asarray(STATE.standard_normal(shape), jnp.float32) for shape in ((S, M, D), (D, V))
)
TEACHER_HIDDEN, TEACHER_KERNEL = (
    jnp.asarray(STATE.standard_normal(shape), jnp.float32) for shape in ((S, M, E), (V, E))
)
TEACHER = Teacher(TEACHER_KERNEL, vocab_first=True, softcap=3.0)
SCORED = jnp.asarray(STATE.rand(S, M) < 0.6).at[0].set(True)
WEIGHTS = jnp.asarray(STATE.rand(S, M), jnp.float32)
CASES = [Divergence(0.0), Divergence(1.0), Divergence(0.3), Divergence(0.0, 4), Divergence(0.6, 4)]


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_values_and_gradients_are_trls(case):
    beta, temperature = GOLDEN["cases"][case].values()
    with jax.enable_x64(True):
        student, teacher = jnp.asarray(GOLDEN["student"]), jnp.asarray(GOLDEN["teacher"])
        mask = jnp.asarray(GOLDEN["mask"])

        @jax.jit
        @jax.value_and_grad
        def mean(student):
            both = student / temperature, teacher / temperature
            found = logit_divergence(*both, Divergence(beta))
            return jnp.sum(jnp.where(mask, found, 0)) / jnp.sum(mask)

        value, gradient = mean(student)
        np.testing.assert_allclose(value, GOLDEN["values"][case], rtol=1e-9)
        np.testing.assert_allclose(gradient, GOLDEN[f"grad_{case}"], atol=1e-12)


def dense(hidden, kernel, *, divergence, softcap=None, temperature=1.0):
    """Both models' logits at once, and autodiff through them."""
    logits = hidden @ kernel
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    teacher = 3.0 * jnp.tanh(TEACHER_HIDDEN @ TEACHER_KERNEL.T / 3.0)
    found = logit_divergence(logits / temperature, teacher / temperature, divergence)
    return jnp.where(SCORED, found, 0)


def ours(hidden, kernel, *, vocab_first=False, **settings):
    kernel = kernel.T if vocab_first else kernel
    return token_divergence(
        hidden, kernel, TEACHER_HIDDEN, TEACHER, SCORED, vocab_first=vocab_first, **settings
    )


@functools.partial(jax.jit, static_argnames=("function", "settings"))
def pulled(function, settings):
    def loss(hidden, kernel):
        found = function(hidden, kernel, **dict(settings))
        return jnp.sum(jnp.sin(found) * WEIGHTS), found

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(HIDDEN, KERNEL)


@pytest.mark.parametrize("divergence", CASES, ids=str)
def test_chunks_are_the_dense_form(divergence):
    settings = (("divergence", divergence), ("softcap", 2.0), ("temperature", 1.3))
    wanted = pulled(dense, settings)
    layout = (("chunk", 4096), ("vocab_first", True)) if divergence.top_k else (("chunk", 4),)
    got = pulled(ours, (*settings, *layout))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), got, wanted)
    assert float(jnp.min(jnp.where(SCORED, got[0][1], 1))) > 0
    assert not got[0][1][~SCORED].any()


@pytest.mark.parametrize("divergence", [CASES[2], CASES[4]], ids=str)
def test_finite_differences(divergence):
    def found(hidden, kernel):
        arrays = jnp.asarray(hidden), jnp.asarray(kernel)
        return ours(*arrays, divergence=divergence, softcap=2.0, chunk=4)

    check_grads(jax.jit(found), (HIDDEN, KERNEL), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_the_teacher_gets_no_gradient():
    def loss(teacher_hidden, kernel):
        teacher = Teacher(kernel, vocab_first=True)
        return jnp.sum(token_divergence(HIDDEN, KERNEL, teacher_hidden, teacher, SCORED, chunk=4))

    for gradient in jax.jit(jax.grad(loss, (0, 1)))(TEACHER_HIDDEN, TEACHER_KERNEL):
        assert not gradient.any()


def test_the_teacher_itself_is_at_no_distance():
    teacher = Teacher(KERNEL)

    @jax.jit
    @jax.value_and_grad
    def total(hidden):
        given = (hidden, KERNEL, HIDDEN, teacher, SCORED)
        return sum(jnp.sum(token_divergence(*given, divergence=d)) for d in (CASES[0], CASES[4]))

    value, gradient = total(HIDDEN)
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_few_tokens_say_less_than_all_and_all_say_all():
    student, teacher = (jnp.asarray(GOLDEN[name], jnp.float32) for name in ("student", "teacher"))
    for beta in (0.0, 0.4, 1.0):
        found = [logit_divergence(student, teacher, Divergence(beta, k)) for k in (1, 5, 18, 19, 0)]
        for less, more in zip(found, found[1:], strict=False):
            assert (less <= more + 1e-6).all()
        np.testing.assert_array_equal(found[-1], found[-2])
        assert float(found[0].mean()) < 0.9 * float(found[-1].mean())


def test_top_k_by_hand():
    student, teacher = jnp.log(jnp.array([[0.1, 0.2, 0.7]])), jnp.log(jnp.array([[0.6, 0.3, 0.1]]))
    found = logit_divergence(student, teacher, Divergence(0.0, 1))
    wanted = 0.6 * math.log(0.6 / 0.1) + 0.4 * math.log(0.4 / 0.9)
    np.testing.assert_allclose(found, [wanted], rtol=1e-6)


def test_ties_over_the_whole_vocabulary_keep_gradients_finite():
    def loss(student):
        return jnp.sum(logit_divergence(student, jnp.zeros((1, V)), Divergence(0.0, 3)))

    gradient = jax.grad(loss)(jnp.arange(float(V))[None])
    wanted = jax.nn.softmax(jnp.arange(float(V))) - 1 / V
    np.testing.assert_allclose(gradient[0], wanted, atol=1e-6)


def test_far_distributions_stay_finite():
    student = jnp.zeros((1, V)).at[0, 0].set(500.0)
    teacher = jnp.zeros((1, V)).at[0, 1].set(500.0)
    for divergence in CASES:
        run = jax.value_and_grad(lambda s, d=divergence: jnp.sum(logit_divergence(s, teacher, d)))
        value, gradient = run(student)
        assert np.isfinite(value) and np.isfinite(gradient).all() and value > 0.4


def test_compiled_gradients_hold_no_logits_and_nothing_for_a_frozen_kernel():
    def loss(hidden, kernel):
        return jnp.sum(ours(hidden, kernel, chunk=4, divergence=Divergence(0.3)) * WEIGHTS)

    def buffers(*argnums):
        text = jax.jit(jax.grad(loss, argnums)).lower(HIDDEN, KERNEL).compile().as_text()
        found = re.findall(r"\bf32\[([\d,]+)\]", text)
        return {tuple(int(size) for size in shape.split(",")) for shape in found}

    frozen, trained = buffers(0), buffers(0, 1)
    assert max(math.prod(shape) for shape in frozen | trained) < S * M * V
    assert (S, D, V) in trained and (S, D, V) not in frozen
