"""Codes and scales against bitsandbytes', and against what their formulas say."""

from pathlib import Path
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.ops.blocks import CODECS, NF4, dequantise, quantise

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "blocks.npz")
BLOCK = 64
make = jax.jit(quantise, static_argnums=(1, 2, 3))
back_of = jax.jit(dequantise, static_argnums=(2, 3, 4))


def test_nf4_is_that_of_bitsandbytes():
    codes, scale = make(jnp.asarray(GOLDEN["x"]), "nf4", -1, BLOCK)
    halves = np.asarray(codes).reshape(-1, BLOCK // 2)  # here a half of a block has the high bits
    ours = np.concatenate([halves >> 4, halves & 15], 1).reshape(-1)
    its = np.stack([GOLDEN["nf4"] >> 4, GOLDEN["nf4"] & 15], -1).reshape(-1)  # there every other
    np.testing.assert_array_equal(ours, its)
    np.testing.assert_array_equal(scale, GOLDEN["nf4_scale"])
    back = back_of(codes, scale, "nf4", -1, "float32")
    np.testing.assert_allclose(back, GOLDEN["nf4_back"], rtol=1e-6)


def test_nf4_table_is_its_formula():
    np.testing.assert_array_equal(np.float32(NF4), GOLDEN["nf4_table"])
    quantile = NormalDist().inv_cdf
    high = [quantile(p) for p in np.linspace(0.9677083, 0.5, 9)[:-1]]
    low = [-quantile(p) for p in np.linspace(0.9677083, 0.5, 8)[:-1]]
    table = np.sort([*high, 0.0, *low])
    np.testing.assert_allclose(NF4, table / table.max(), atol=2e-7)


@pytest.mark.parametrize("kind", ["dynamic", "dynamic_unsigned"])
def test_dynamic_codes_are_the_nearest_of_bitsandbytes_map(kind):
    numbers = jax.jit(CODECS[kind].decode)(jnp.arange(256, dtype=jnp.uint8))
    np.testing.assert_allclose(numbers, GOLDEN[f"{kind}_map"], rtol=2e-6)
    x = GOLDEN["x"] if kind == "dynamic" else GOLDEN["positive"]
    codes, scale = make(jnp.asarray(x), kind, -1, BLOCK)
    unit = x.reshape(-1, BLOCK) / np.maximum(np.abs(x).reshape(-1, BLOCK).max(1), 1e-38)[:, None]
    nearest = np.abs(unit[..., None] - GOLDEN[f"{kind}_map"]).argmin(-1).reshape(x.shape)
    np.testing.assert_array_equal(codes, nearest)
    # Its kernel for CPUs takes a neighbour now and then: it is never nearer.
    off = np.abs(x - back_of(codes, scale, kind, -1, "float32"))
    its = np.abs(x - GOLDEN[f"{kind}_back"])
    assert (off <= its + 1e-6 * np.abs(x)).all() and its.sum() < 1.1 * off.sum()


@pytest.mark.parametrize("kind", sorted(CODECS))
def test_a_code_is_the_nearest(kind):
    unit = np.linspace(-1, 1, 4001, dtype=np.float32) ** 3
    unit = np.abs(unit) if kind == "dynamic_unsigned" else unit
    codec = CODECS[kind]
    known = np.unique(
        jax.jit(codec.decode)(jnp.arange(16 if codec.packed else 256, dtype=jnp.uint8))
    )
    if kind == "int8":
        known = known[known >= -1]  # -128 is not used
    found = np.asarray(jax.jit(lambda u: codec.decode(codec.encode(u)))(unit))
    nearest = np.abs(unit[:, None] - known).min(1)
    assert (np.abs(unit - found) <= nearest + 1e-7).all()


@pytest.mark.parametrize(("kind", "axis"), [("nf4", -1), ("nf4", -3), ("int8", -2)])
def test_blocks_lie_along_any_axis(kind, axis):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 16, 32, 8)), jnp.float32)
    codes, scale = make(x, kind, axis, 8)
    moved, moved_scale = make(jnp.moveaxis(x, axis, -1), kind, -1, 8)
    np.testing.assert_array_equal(jnp.moveaxis(codes, axis, -1), moved)
    np.testing.assert_array_equal(jnp.moveaxis(scale, axis, -1), moved_scale)
    back = back_of(codes, scale, kind, axis, "float32")
    wide = jnp.repeat(scale, 8, axis=axis)
    worst = 0.5 / 127 if kind == "int8" else max(np.diff(NF4)) / 2
    assert jnp.max(jnp.abs(back - x) / wide) <= worst + 1e-6
    one = back_of(codes[1], scale[1], kind, axis, "float32")  # a layer of a stack
    np.testing.assert_array_equal(one, back[1])
