"""What unpaired rewards are compared with: by hand, and what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.forward import ForwardOptions, forward_in_parts
from ptjax.sharding import make_mesh
from ptjax.stages.base import Context
from ptjax.stages.baseline import bco_baseline, kto_baseline
from ptjax.types import Outputs
from tests import toy

B, T, BETA = 5, 6, 0.3
STATE = np.random.RandomState(4)
MASK = (STATE.rand(B, 1, T) < 0.7).astype(np.float32)
WEIGHTS = np.float32([[1.0], [0.25], [2.0], [1.0], [0.0]])
REAL = WEIGHTS[:, 0] > 0


def nothing(*_, **__):
    raise AssertionError("this is not to be asked")


def context(policy=nothing, reference=nothing, *, training=True):
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    return Context(0, training, {}, policy, reference, nothing, mesh)


def says(logps):
    """A model of these log-probs, of whatever it is asked about."""
    return lambda batch, fields, trained=None: Outputs(logps=jnp.asarray(logps))


def drawn(shift=0.0):
    """Log-probs; those of the filler, whose weight is 0, are huge."""
    logps = ((shift - 2 * STATE.rand(B, 1, T)) * MASK).astype(np.float32)
    logps[~REAL] = 1e9 * STATE.rand()
    return logps


def kto(policy, reference, **columns):
    """The stage's baseline where the answers' own columns are those of other answers."""
    batch = {"weights": WEIGHTS, "mask": MASK, "kl_mask": MASK, **columns}
    ctx = context(policy, reference)
    found, carry = kto_baseline.run(ctx, {k: jnp.asarray(v) for k, v in batch.items()}, None)
    assert set(found) == {"weights", "mask", "baseline"} and carry is None
    baseline = np.asarray(found["baseline"])
    assert baseline.shape == (B,) and (baseline == baseline[0]).all()
    assert ctx.logged["baseline"] == baseline[0]
    return baseline[0]


def test_ktos_baseline_is_the_mean_ratio_of_the_mismatched():
    """Whatever an example weighs in the loss, it counts once; filler does not, and below 0 is 0."""
    policy, reference = drawn(1.0), drawn()
    ratios = (policy - reference).sum((1, 2))[REAL]
    assert ratios.mean() > 0.5
    found = kto(says(policy), says(reference))
    np.testing.assert_allclose(found, ratios.mean(), rtol=1e-5)
    assert kto(says(reference), says(policy)) == 0
    assert kto(says(policy), nothing, kl_ref_logps=reference) == found  # from a cache


def test_ktos_models_are_asked_about_the_mismatched_columns():
    def asked(batch, fields, trained=None):
        assert set(batch) == {"mask"} and fields == ("logps",)
        return Outputs(logps=jnp.asarray(-1.0 * MASK * np.asarray(batch["mask"])))

    assert kto(asked, asked, kl_mask=2 * MASK) == 0


LAYOUTS = {
    "micro-batches": (None, 4, False),
    "packed": (None, 1, True),
    "packed micro-batches on a mesh": (dict(data=2, fsdp=2, tensor=2), 2, True),
}
EXAMPLES = [
    *toy.examples(15),
    toy.Example(np.array([5, 6, 7]), np.array([0, 1, 1], np.float32), 0.0),
]


@functools.cache
def through_the_model(layout):
    """KTO's baseline between two small models: as it is, or micro-batched, packed, on a mesh."""
    shape, accumulate, is_packed = (None, 1, False) if layout is None else LAYOUTS[layout]
    mesh = make_mesh(shape) if shape else make_mesh({"fsdp": 1}, jax.devices()[:1])
    shards = sharding.batch_shards(mesh)
    columns = toy.batch(EXAMPLES)
    if is_packed:
        columns = toy.packed(EXAMPLES, shards=shards, accumulate=accumulate)
        assert len(columns["pack"]) < len(EXAMPLES)
    columns = {f"kl_{name}": x for name, x in columns.items()} | {"weights": columns["weights"]}
    options = ForwardOptions(head_chunk=16)
    run = jax.jit(
        functools.partial(
            forward_in_parts, toy.MODEL, fields=("logps",), accumulate=accumulate, options=options
        ),
        compiler_options=toy.QUICK,
    )
    policy = toy.on_mesh(toy.MODEL, toy.params(), mesh)
    reference = {name: 1.2 * leaf for name, leaf in policy.items()}
    ctx = context(lambda batch, _: run(policy, batch), lambda batch, _: run(reference, batch))
    with jax.set_mesh(mesh):
        found, _ = kto_baseline.run(ctx, sharding.put_batch(columns, mesh), None)
    return np.asarray(found["baseline"])[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_a_batch_is_laid_out_does_not_change_ktos_baseline(layout):
    wanted = through_the_model(None)
    assert wanted > 0.01
    np.testing.assert_allclose(through_the_model(layout), wanted, rtol=1e-4)


def bco(carry, policy, reference, *, training=True):
    """BCO's baseline, what it logs, and what it remembers."""
    ctx = context(says(policy) if training else nothing, training=training)
    batch = {"weights": WEIGHTS, "mask": MASK, "ref_logps": reference}
    batch = {name: jnp.asarray(column) for name, column in batch.items()}
    found, carry = bco_baseline.run(ctx, batch, carry, beta=BETA)
    baseline = np.asarray(found["baseline"])
    assert baseline.shape == (B,) and (baseline == baseline[0]).all()
    return baseline[0], ctx.logged, carry


def test_bcos_delta_is_the_mean_of_all_rewards_so_far():
    batches = [(drawn(shift), drawn()) for shift in (1.0, -0.5)]
    rewards = [BETA * (policy - ref).sum((1, 2))[REAL] for policy, ref in batches]
    carry = bco_baseline.begin({})
    for seen, batch in enumerate(batches, 1):
        delta, logged, carry = bco(carry, *batch)
        np.testing.assert_allclose(delta, np.concatenate(rewards[:seen]).mean(), rtol=1e-5)
        assert logged["delta"] == delta
    assert carry["count"] == 2 * REAL.sum()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_batch_that_is_not_finite_is_not_remembered(value):
    first, broken = (drawn(1.0), drawn()), drawn()
    broken[0, 0, 2] = value
    before, _, carry = bco(bco_baseline.begin({}), *first)
    delta, _, after = bco(carry, broken, drawn())
    assert delta == before and before != 0
    assert jax.tree.all(jax.tree.map(np.array_equal, after, carry))


def test_held_out_answers_are_compared_with_delta_and_are_not_in_it():
    before, _, carry = bco(bco_baseline.begin({}), drawn(1.0), drawn())
    delta, logged, after = bco(carry, drawn(-3.0), drawn(), training=False)
    assert delta == before and before != 0 and "delta" not in logged
    assert jax.tree.all(jax.tree.map(np.array_equal, after, carry))
    assert bco(bco_baseline.begin({}), drawn(), drawn(), training=False)[0] == 0
