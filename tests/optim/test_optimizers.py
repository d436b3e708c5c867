"""Optimizers by name, masks by the table's axes, schedules at their key points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ptjax import sharding
from ptjax.config.defaults import defaults
from ptjax.errors import UserError
from ptjax.models.spec import Param
from ptjax.optim import (
    OPTIMIZERS,
    SCHEDULES,
    make_optimizer,
    make_schedule,
    muon_axes,
    state_shardings,
)
from tests import toy
from tests.full import only_in_full

ROWS = {
    "embed": Param("vocab embed", init="embed"),
    "layers.norm": Param("layers embed", init="ones"),
    "layers.q": Param("layers embed -> heads head_dim"),
    "layers.o": Param("layers heads head_dim -> embed"),
    "layers.q.bias": Param("layers heads head_dim", init="zeros"),
    "layers.q.lora_a": Param("layers embed -> rank"),
    "norm": Param("embed", init="ones"),
    "head": Param("embed -> vocab"),
    "score": Param("embed -> labels"),
}
DIMS = dict(labels=1, vocab=24, embed=8, layers=3, heads=2, head_dim=4, rank=2)
WIDE = DIMS | dict(vocab=160, embed=136, head_dim=64)
"""Sizes at which Adafactor factors: 64 a head, 128 all heads."""
DECAYED = {"embed", "layers.q", "layers.o", "layers.q.lora_a", "head", "score"}


def leaves(seed, scale=1.0, dtype=np.float32, rows=ROWS, dims=DIMS):
    state = np.random.RandomState(seed)
    return {
        name: jnp.asarray(scale * state.standard_normal([dims[a] for a in row.names]), dtype)
        for name, row in rows.items()
    }


PARAMS = leaves(0)


def steps(tx, grads_of, params, count):
    def one(carry, _):
        params, state = carry
        updates, state = tx.update(grads_of(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(one, (params, tx.init(params)), length=count)[0]


def run_steps(tx, grads, count):
    """Steps from PARAMS under gradients that stay the same."""
    run = jax.jit(lambda p: steps(tx, lambda _: grads, p, count)[0], compiler_options=toy.QUICK)
    return run(PARAMS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss_under_every_schedule(name):
    target = leaves(1)
    rate = 1.0 if name == "sgd" else 0.05
    every = [
        make_schedule(learning_rate=rate, steps=40, schedule=schedule, warmup=0.1)
        for schedule in SCHEDULES
    ]

    def loss(params):
        return sum(jnp.sum((params[k] - target[k]) ** 2) for k in params)

    @functools.partial(jax.jit, compiler_options=toy.QUICK)
    def train(which):
        tx = make_optimizer(
            ROWS, lambda count: jax.lax.switch(which, every, count), name=name, weight_decay=0.001
        )
        return loss(steps(tx, jax.grad(loss), PARAMS, 40)[0])

    for which in range(len(SCHEDULES)):
        assert train(which) < 0.9 * loss(PARAMS), SCHEDULES[which]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_touches_kernels_and_embeddings_alone(name):
    """Without gradients, what decays shrinks by one factor a step, and nothing else moves."""
    tx = make_optimizer(ROWS, lambda _: 0.1, name=name, weight_decay=0.5, clip_norm=None)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    after = run_steps(tx, zeros, 3)
    for key, leaf in PARAMS.items():
        expected = leaf * (1 - 0.1 * 0.5) ** 3 if key in DECAYED else leaf
        np.testing.assert_allclose(after[key], expected, rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_keeps_its_dtypes(name):
    """A step's state must be of the types that `init` gave it: else the next step compiles anew."""
    tx = make_optimizer(ROWS, lambda _: 0.1, name=name, weight_decay=0.1)
    params = leaves(0, dtype=jnp.bfloat16)
    state = jax.eval_shape(tx.init, params)
    grads = leaves(1)

    def step(state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    moved, after = jax.eval_shape(step, state)
    assert after == state
    assert {leaf.dtype for leaf in moved.values()} == {jnp.dtype("bfloat16")}


def test_clipping_bounds_the_global_norm():
    rates = dict(name="sgd", momentum=0.0)
    clipped = make_optimizer(ROWS, lambda _: 1.0, clip_norm=0.5, **rates)
    grads, update = leaves(2, scale=100), jax.jit(clipped.update)
    updates, _ = update(grads, clipped.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.5, rtol=1e-5)
    small = jax.tree.map(lambda g: g * 1e-6, grads)
    updates, _ = update(small, clipped.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["head"], -small["head"], rtol=1e-6)


def test_muon_orthogonalises_each_layers_kernel():
    """One step on stacked leaves = optax's own rule on each layer's matrix by itself."""
    tx = make_optimizer(ROWS, lambda _: 0.1, name="muon", momentum=0.95, clip_norm=None)
    grads = leaves(3)
    updates, _ = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS)
    plain = optax.contrib.muon(0.1, beta=0.95, consistent_rms=0.2)
    alone = jax.jit(lambda grads: plain.update(grads, plain.init(grads), grads)[0])
    for name, rows in (("layers.q", 8), ("layers.o", 8), ("layers.q.lora_a", 8)):
        for layer in range(DIMS["layers"]):
            matrix = {"w": grads[name][layer].reshape(rows, -1)}
            got = updates[name][layer].reshape(rows, -1)
            np.testing.assert_allclose(got, alone(matrix)["w"], atol=1e-5)
    singular = np.linalg.svd(updates["layers.q"][0].reshape(8, 8), compute_uv=False)
    assert singular.max() / singular.min() < 3 < np.linalg.cond(grads["layers.q"][0].reshape(8, 8))


def each_layer(leaves, rows):
    """The matrices and vectors that stacked leaves are made of, each under a name of its own."""
    made = {}
    for name, leaf in leaves.items():
        row = rows[name]
        for i, one in enumerate(leaf if row.stacked else [leaf]):
            inputs = int(np.prod(one.shape[: len(row.inputs)])) if row.is_kernel else len(one)
            made[name, i] = one.reshape(inputs, -1) if row.is_kernel else one
    return made


def test_adafactor_treats_each_layers_matrix_alone():
    """Two steps on stacked leaves = optax's own rule on each layer's matrix by itself.

    Layers' sizes differ by magnitudes, in which a clip or a scale that they shared would show.
    """
    rows = ROWS | {"layers.q.lora_b": Param("layers rank -> mlp vocab")}
    dims = WIDE | dict(mlp=128)
    params, *grads = (leaves(seed, rows=rows, dims=dims) for seed in range(3))
    for tree, factors in ((params, (0.01, 1, 9)), (grads[1], (100, 1, 0.01))):
        for name in tree:
            if rows[name].stacked:
                tree[name] *= np.reshape(factors, [3] + [1] * (tree[name].ndim - 1))
    tx = make_optimizer(rows, lambda _: 0.1, name="adafactor", clip_norm=None)
    plain = optax.adafactor(0.1)

    def two_steps(tx, params, grads):
        state = tx.init(params)
        for each in grads:
            updates, state = tx.update(each, state, params)
        return updates, state

    @functools.partial(jax.jit, compiler_options=toy.QUICK)
    def both(params, grads):
        stacked = two_steps(tx, params, grads)
        alone = [each_layer(tree, rows) for tree in (params, *grads)]
        return stacked, two_steps(plain, alone[0], alone[1:])[0]

    (updates, state), wanted = both(params, grads)
    got = each_layer(updates, rows)
    assert got.keys() == wanted.keys()
    for key, matrix in wanted.items():
        size = float(jnp.abs(matrix).max())
        np.testing.assert_allclose(got[key], matrix, atol=1e-5 * size, err_msg=key)
    moments = {name: 0 for name in rows}
    for path, leaf in jax.tree.leaves_with_path(state):
        for name in moments.keys() & {getattr(part, "key", None) for part in path}:
            moments[name] += leaf.size
    factored = {name for name, count in moments.items() if count < params[name].size / 10}
    assert factored == {"embed", "layers.q", "layers.o", "head"}


@pytest.mark.parametrize(("name", "own"), [("adamw", 0.999), ("lion", 0.99)])
def test_each_has_a_second_decay_of_its_own(name, own):
    """Lion's is the paper's; a config that names none leaves it to the optimizer."""
    assert defaults().optim.b2 is None

    @functools.partial(jax.jit, static_argnums=0, compiler_options=toy.QUICK)
    def state(b2):
        tx = make_optimizer(ROWS, lambda _: 0.1, name=name, b2=b2)
        return jax.tree.leaves(tx.update(PARAMS, tx.init(PARAMS), PARAMS)[1])

    def alike(b2):
        return all(map(np.array_equal, state(None), state(b2)))

    assert alike(own) and not alike(0.995)


def test_muon_leaves_the_rest_to_adam():
    assert {k for k, row in ROWS.items() if muon_axes(row)} == DECAYED - {"embed", "head", "score"}
    settings = dict(weight_decay=0.1, b1=0.8, b2=0.9)
    grads = leaves(4)
    got, wanted = (
        run_steps(make_optimizer(ROWS, lambda _: 0.1, name=name, **settings), grads, 3)
        for name in ("muon", "adamw")
    )
    for key in ("embed", "head", "score", "norm", "layers.norm", "layers.q.bias"):
        np.testing.assert_allclose(got[key], wanted[key], rtol=1e-5, atol=1e-6, err_msg=key)
    assert not np.allclose(got["layers.q"], wanted["layers.q"], rtol=1e-2)


def at(steps, *places, **settings):
    schedule = make_schedule(learning_rate=2.0, steps=steps, **settings)
    return [float(schedule(jnp.int32(place))) for place in places]


def test_schedules_at_their_key_points():
    close = pytest.approx
    assert at(100, 0, 5, 10, 99, schedule="constant", warmup=10) == close([0, 1, 2, 2])
    assert at(110, 10, 60, 110, schedule="linear", warmup=10, final=0.1) == close([2, 1.1, 0.2])
    assert at(110, 10, 60, 110, schedule="cosine", warmup=10, final=0.1) == close([2, 1.1, 0.2])
    assert at(100, 0, 50, 100, schedule="cosine") == close([2, 1, 0], abs=1e-6)
    assert at(100, 10, 80, 90, 100, schedule="wsd", warmup=0.1) == close([2, 2, 1, 0], abs=1e-6)
    assert at(100, 2, 4, schedule="constant", warmup=0.04) == close([1, 2])
    assert at(1, 0, schedule="cosine") == close([2])


def test_wsd_ends_at_its_final_rate_also_where_warmup_and_decay_overlap():
    assert at(100, 60, 100, schedule="wsd", warmup=60, decay=0.8) == pytest.approx([2, 0])


def test_schedules_refuse_what_cannot_be():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        make_schedule(learning_rate=1.0, steps=9, schedule="cosin")
    with pytest.raises(UserError, match="10 warmup steps leave nothing of a run of 10 steps"):
        make_schedule(learning_rate=1.0, steps=10, warmup=10)
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        make_optimizer(ROWS, lambda _: 0.1, name="adam")


def on_mesh(tree, mesh):
    """The leaves where the rules put them."""
    return {
        name: jax.device_put(leaf, sharding.named(ROWS[name].names, leaf.shape, mesh))
        for name, leaf in tree.items()
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_lies_where_its_parameters_do_and_steps_as_on_one_device(name):
    mesh = sharding.make_mesh(dict(fsdp=4, tensor=2))
    tx = make_optimizer(ROWS, lambda _: 0.1, name=name, weight_decay=0.1)
    params, grads = (leaves(seed, dims=WIDE) for seed in range(2))
    placed = on_mesh(params, mesh)
    everywhere = sharding.replicated(mesh)
    shardings = state_shardings(tx, placed, everywhere)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    places, moments = {}, 0
    for path, leaf in jax.tree.leaves_with_path(state):
        key = next((p.key for p in path if getattr(p, "key", None) in params), None)
        if key is not None and leaf.shape == params[key].shape:
            places.setdefault(key, set()).add(leaf.sharding.spec)
        else:
            assert leaf.sharding.is_equivalent_to(everywhere, leaf.ndim)
            moments += leaf.size
    assert all(found == {placed[key].sharding.spec} for key, found in places.items())
    factored = {"embed", "head", "layers.q", "layers.o"} if name == "adafactor" else set()
    assert places.keys() == (params.keys() - factored)
    assert moments < sum(leaf.size for leaf in params.values()) / 20

    step = functools.partial(jax.jit, compiler_options=toy.QUICK)
    alone, _ = step(tx.update)(grads, tx.init(params), params)
    together, after = step(tx.update, out_shardings=(None, shardings))(
        on_mesh(grads, mesh), state, placed
    )
    assert jax.tree.map(lambda x: x.sharding, after) == shardings
    for key, update in alone.items():
        np.testing.assert_allclose(together[key], update, rtol=1e-4, atol=1e-5, err_msg=key)


@only_in_full
def test_an_offloaded_state_lies_on_the_host_and_updates_alike():
    mesh = sharding.make_mesh({"fsdp": 2}, jax.devices()[:2])
    put = {key: sharding.named(ROWS[key].names, x.shape, mesh) for key, x in PARAMS.items()}
    params = jax.device_put(PARAMS, put)
    plain = make_optimizer(ROWS, lambda _: 0.1)
    away = make_optimizer(ROWS, lambda _: 0.1, offload=True)
    places = state_shardings(away, params, sharding.replicated(mesh), offload=True)
    state, wanted = jax.jit(away.init, out_shardings=places)(params), jax.jit(plain.init)(params)

    @functools.partial(jax.jit, out_shardings=(put, places), donate_argnums=1)
    def guarded(grads, state, accept):  # within a branch, as a step has it
        return jax.lax.cond(
            accept, lambda s: away.update(grads, s, params), lambda s: (grads, s), state
        )

    for seed in (1, 2):
        grads = jax.device_put(leaves(seed), put)
        updates, state = guarded(grads, state, jnp.bool_(True))
        exact, wanted = jax.jit(plain.update)(grads, wanted, params)
        for key in params:
            np.testing.assert_allclose(updates[key], exact[key], rtol=1e-5)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    kinds = {leaf.ndim > 0: leaf.sharding.memory_kind for leaf in jax.tree.leaves(state)}
    assert kinds == {True: sharding.HOST, False: "device"}, "counts stay"
