"""What a teacher says of a batch: columns by hand, answers that do not count."""

import jax.numpy as jnp
import numpy as np

from ptjax import sharding
from ptjax.stages.base import Context
from ptjax.stages.teacher import teacher_advantage, teacher_hidden
from ptjax.types import Outputs

B, N, T = 3, 2, 7
STATE = np.random.RandomState(5)
MASK = (STATE.rand(B, N, T) < 0.6).astype(np.float32)
WEIGHTS = np.ones((B, N), np.float32)
WEIGHTS[2, 0] = 0
TEACHER, SAMPLER, OLD = (
    np.where(MASK == 0, 0, -STATE.rand(B, N, T)).astype(np.float32) for _ in range(3)
)


def context():
    """A context whose reference answers what it is asked."""

    def reference(batch, fields, trained=None):
        said = {"logps": jnp.asarray(TEACHER), "hidden": jnp.ones((B, N, T, 4), jnp.bfloat16)}
        return Outputs(**{name: said[name] for name in fields})

    return Context(
        step=0,
        training=True,
        trained={},
        policy=reference,
        reference=reference,
        model=lambda: None,
        mesh=sharding.make_mesh({"data": -1}),
    )


def batch(**more):
    given = {"mask": MASK, "weights": WEIGHTS, "sampler_logps": SAMPLER, **more}
    return {name: jnp.asarray(column) for name, column in given.items()}


def test_advantages_are_what_the_teacher_finds_likelier():
    for more, old in (({}, SAMPLER), ({"old_logps": OLD}, OLD)):
        ctx = context()
        found, _ = teacher_advantage.run(ctx, batch(**more), None)
        counts = MASK * WEIGHTS[..., None]
        np.testing.assert_allclose(found["advantages"], (TEACHER - old) * counts, atol=1e-6)
        wanted = ((old - TEACHER) * counts).sum() / counts.sum()
        np.testing.assert_allclose(ctx.logged["teacher/kl"], wanted, rtol=1e-5)


def test_hidden_states_stay_in_the_teachers_dtype():
    found, _ = teacher_hidden.run(context(), batch(), None)
    assert found["teacher_hidden"].dtype == jnp.bfloat16
    assert set(found) - set(batch()) == set(teacher_hidden.writes)
