"""Moments in 8 bits: what the formula says, where they lie, and that they still train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.models.spec import Param
from ptjax.ops.blocks import dequantise, quantise
from ptjax.optim import OPTIMIZERS, make_optimizer, state_shardings
from ptjax.optim.state_bits import Moment, blocks, in_8_bits
from ptjax.types import tree_bytes

ROWS = {
    "embed": Param("vocab embed"),
    "layers.q": Param("layers embed -> heads head_dim"),
    "layers.norm": Param("layers embed"),
    "layers.o": Param("layers heads head_dim -> embed"),
}
SIZES = dict(vocab=48, embed=64, layers=2, heads=4, head_dim=16)
B1, B2, EPS = 0.9, 0.95, 1e-8


def leaves(seed, rows=ROWS):
    draw = np.random.default_rng(seed)
    return {
        name: jnp.asarray(draw.standard_normal([SIZES[a] for a in row.names]), jnp.float32)
        for name, row in rows.items()
    }


def test_blocks_divide_an_axis_and_norms_have_none():
    assert blocks(ROWS["embed"], (48, 64)) == (-1, 64)
    assert blocks(ROWS["layers.q"], (2, 64, 4, 16)) == (-3, 64)
    assert blocks(ROWS["layers.o"], (2, 4, 16, 64)) == (-1, 64)
    assert blocks(Param("layers embed -> mlp"), (2, 4096, 14336)) == (-1, 256)
    assert blocks(Param("layers rank -> heads head_dim"), (2, 7, 5, 9)) is None
    assert blocks(ROWS["layers.norm"], (2, 64)) is None


def test_each_step_is_its_formula():
    rows = {name: ROWS[name] for name in ("layers.q", "layers.norm")}
    tx = in_8_bits(optax.scale_by_adam(B1, B2, EPS), rows)
    params = leaves(0, rows)
    make, back = (
        jax.jit(quantise, static_argnums=(1, 2, 3)),
        jax.jit(dequantise, static_argnums=(2, 3, 4)),
    )
    advance = jax.jit(tx.update)
    state = jax.jit(tx.init)(params)
    m = {name: np.zeros(leaf.shape, np.float32) for name, leaf in params.items()}
    v = dict(m)
    for step in (1, 2, 3):
        grads = leaves(step, rows)
        directions, state = advance(grads, state, params)
        for name, g in grads.items():
            m[name] = B1 * m[name] + (1 - B1) * np.asarray(g)
            v[name] = B2 * v[name] + (1 - B2) * np.square(g)
            wanted = (m[name] / (1 - B1**step)) / (np.sqrt(v[name] / (1 - B2**step)) + EPS)
            np.testing.assert_allclose(directions[name], wanted, rtol=2e-5, atol=1e-6)
            if (found := blocks(ROWS[name], g.shape)) is not None:  # kept for the next step
                for moments, kind in ((m, "dynamic"), (v, "dynamic_unsigned")):
                    kept = make(jnp.asarray(moments[name]), kind, *found)
                    moments[name] = np.asarray(back(*kept, kind, found[0], "float32"))
    assert (
        isinstance(state.mu["layers.q"], Moment) and state.nu["layers.q"].kind == "dynamic_unsigned"
    )
    assert state.mu["layers.norm"].dtype == jnp.float32


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"adafactor"}))
def test_memory_and_places(name):
    mesh = sharding.make_mesh(dict(fsdp=4, tensor=2))
    params = {
        key: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.named(ROWS[key].names, leaf.shape, mesh)
        )
        for key, leaf in leaves(0).items()
    }
    states, everywhere = {}, sharding.replicated(mesh)
    for bits in (8, 32):
        tx = make_optimizer(ROWS, lambda _: 0.1, name=name, state_bits=bits)
        states[bits] = jax.eval_shape(tx.init, params), state_shardings(tx, params, everywhere)
    assert tree_bytes(states[8][0]) < 0.32 * tree_bytes(states[32][0])
    flat = jax.tree.leaves_with_path(states[8][0])
    places = dict(jax.tree.leaves_with_path(states[8][1]))
    moments = [(path, leaf) for path, leaf in flat if leaf.dtype == jnp.uint8]
    assert moments
    for path, leaf in flat:
        key = next((p.key for p in path if getattr(p, "key", None) in params), None)
        if leaf.dtype == jnp.uint8:
            assert places[path] == params[key].sharding
        elif key == "layers.q" and path[-1].name == "scale":
            assert leaf.shape == (2, 1, 4, 16)
            assert places[path].spec == jax.P(None, None, "tensor", None)


def test_it_learns_as_with_32_bits():
    rows = {"embed": ROWS["embed"]}
    target, begin = leaves(7, rows), leaves(8, rows)

    def losses(bits):
        tx = make_optimizer(rows, lambda _: 0.1, state_bits=bits, clip_norm=None)

        def step(carry, _):
            params, state = carry
            off = params["embed"] - target["embed"]
            updates, state = tx.update({"embed": off}, state, params)
            return (optax.apply_updates(params, updates), state), jnp.mean(off**2)

        return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=80)[1])(begin)

    exact, small = losses(32), losses(8)
    assert exact[-1] < 0.01 * exact[0]
    np.testing.assert_allclose(small, exact, rtol=0.05, atol=0.005 * exact[0])


def test_names():
    with pytest.raises(UserError, match=r"optim.state_bits = 16: it must be 8 or 32"):
        make_optimizer(ROWS, lambda _: 0.1, state_bits=16)
    with pytest.raises(UserError, match="adafactor keeps no moment of a parameter's size"):
        make_optimizer(ROWS, lambda _: 0.1, name="adafactor", state_bits=8)
