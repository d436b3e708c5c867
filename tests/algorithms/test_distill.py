"""Distillation: a student finds its teacher; settings reach the forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.algorithms.distill import GKD, gkd_after, on_policy_distillation_after
from ptjax.errors import UserError
from ptjax.forward import ForwardOptions, forward
from ptjax.ops.divergence import Divergence, Teacher
from ptjax.stages.base import Stage
from ptjax.step import gradients
from tests import toy

EXAMPLES = toy.examples()
ROLLOUT = Stage("rollout", lambda ctx, batch, carry: (batch, carry), sequences=1)


@functools.cache
def taught():
    """A batch with the hidden states of a teacher, and its projection."""
    params = {
        name: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)
        for name, leaf in toy.params().items()
    }
    batch = {k: jnp.asarray(v) for k, v in toy.batch(EXAMPLES).items()}
    run = functools.partial(forward, toy.MODEL, fields=("hidden",))
    said = jax.jit(run, compiler_options=toy.QUICK)(params, batch).hidden
    return params, batch | {"teacher_hidden": said}, Teacher(*toy.MODEL.projection(params))


def stepper(accumulate=1, **hparams):
    bound = GKD.bind(hparams, "config.hparams")
    options = ForwardOptions(head_chunk=8, **dict(bound.forward))
    _, batch, teacher = taught()

    def run(params):
        return gradients(
            *(toy.MODEL, bound, toy.state(params), batch),
            accumulate=accumulate,
            options=options,
            key=None,
            teacher=teacher,
        )[:2]

    return jax.jit(run, compiler_options=toy.QUICK)


def test_a_student_finds_its_teacher():
    """Gradient descent on the divergence ends near the teacher, where loss and slope are 0."""
    run = stepper()
    loss, slope = run(taught()[0])
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    assert max(float(jnp.abs(g).max()) for g in slope.values()) < 1e-4
    params, first = toy.params(), None
    for _ in range(30):
        loss, slope = run(params)
        first = float(loss) if first is None else first
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, slope)
    assert 0 < float(loss) < 0.2 * first


def test_micro_batches_add_up():
    one = jax.tree.map(np.asarray, stepper(beta=1.0, top_k=5)(toy.params()))
    four = jax.tree.map(np.asarray, stepper(4, beta=1.0, top_k=5)(toy.params()))
    toy.assert_same(four, one, rtol=2e-5)


def test_settings_reach_the_forward_pass():
    bound = GKD.bind({"beta": 1, "top_k": 64, "temperature": 0.9}, "config.hparams")
    assert dict(bound.forward) == {"divergence": Divergence(1.0, 64), "temperature": 0.9}
    assert hash(bound) == hash(dataclasses.replace(bound))
    assert [stage.name for stage in bound.stages] == ["teacher_hidden"]
    names = [stage.name for stage in gkd_after(ROLLOUT).bind({}, "config.hparams").stages]
    assert names == ["rollout", "teacher_hidden"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 1.1}, r"beta = 1.1: it must be in \[0, 1\]"),
        ({"top_k": -1}, "top_k = -1: it must be not negative"),
        ({"temperature": 0.0}, "temperature = 0.0: it must be above 0"),
    ],
)
def test_refused(given, message):
    with pytest.raises(UserError, match=message):
        GKD.bind(given, "config.hparams")


def test_on_policy_distillation_is_a_policy_gradient():
    algorithm = on_policy_distillation_after(ROLLOUT)
    bound = algorithm.bind({}, "config.hparams")
    assert bound.needs == ("logps", "entropy") and bound.stages[-1].name == "teacher_advantage"
    for given, message in (
        ({"correction": "tokens"}, "correction = 'tokens'"),
        ({"correction_low": 0.5}, "correction_low is not read where correction = 'none'"),
        ({"clip_low": -1.0}, "clip_low = -1.0: it must be not negative"),
    ):
        with pytest.raises(UserError, match=message):
            algorithm.bind(given, "config.hparams")
