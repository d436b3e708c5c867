"""Attention where rows are cut along their length = a naive softmax over whole rows.

Queries stay where they are, and keys and values are gathered: values, gradients, what is sent.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.models.config import GLOBAL_WINDOW
from ptjax.ops import tiles as module
from ptjax.ops.attention import attention
from tests.full import only_in_full
from tests.ops.spans import E, K, R, arrays, groups_of, naive, packed_span, rows_of

MESH = dict(fsdp=2, sequence=4)
GROUPS = groups_of([(13, 9, 2, 20), (1, 5, 1), (6, 8)], [(30, 1, 1, 1, 32)])
CASES = {
    "packed, parts that tiles do not divide": (packed_span(72), dict()),
    "window and softcap": (rows_of([3, 20, 9, 16, 8, 8], [64]), dict(window=11, softcap=1.5)),
    "shared": (jax.tree.map(lambda x: x[:, :64], GROUPS), dict()),
    "shared and window": (jax.tree.map(lambda x: x[:, :64], GROUPS), dict(window=9)),
}


def compiled(span, sizes, kernel, window=GLOBAL_WINDOW, **settings):
    """A program of queries, keys and values on a mesh: the result at real tokens, and gradients."""
    length = span.segments.shape[1]
    q, k, v, ways = arrays(length, length)
    ways = ways * (span.segments > 0)[..., None, None]
    mesh = sharding.make_mesh(sizes)

    def made(function, **more):
        def loss(qkv):
            out = function(*qkv, span, span, window, scale=0.4, **settings, **more)
            return jnp.sum(out * ways), jnp.where(ways != 0, out, 0)

        return jax.jit(jax.grad(loss, has_aux=True))

    run = made(attention, aligned=True, kernel=kernel)
    with jax.set_mesh(mesh):
        axes = [("batch", "length", name, "head_dim") for name in ("heads", *["kv_heads"] * 2)]
        placed = [
            jax.device_put(x, sharding.named(names, x.shape, mesh))
            for x, names in zip((q, k, v), axes, strict=True)
        ]
        program = run.lower(placed).compile()
    return program, placed, functools.partial(made(naive), (q, k, v))


def check(span, sizes, kernel="tiles", **settings):
    program, placed, wanted = compiled(span, sizes, kernel, **settings)
    found = program(placed)
    for x, gradient in zip(placed, found[0], strict=True):
        assert gradient.sharding.is_equivalent_to(x.sharding, 4)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted()), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, atol=3e-5)


@pytest.mark.parametrize("case", CASES)
def test_tiles_of_a_part_of_the_queries(case, monkeypatch):
    monkeypatch.setattr(module, "TILE", 8)
    span, settings = CASES[case]
    check(span, MESH, **settings)


@pytest.mark.parametrize(
    ("span", "sizes", "settings"),
    [
        # parts of 200 queries, of which blocks of 128 are no divisor
        (rows_of([130, 60, 210], [400]), dict(sequence=2, data=4), dict(window=77, softcap=1.5)),
        pytest.param(
            groups_of([(60, 140, 20, 30), (130, 25, 11), (9, 15)], [(200, 20, 61, 159)]),
            *(dict(sequence=2, tensor=2, data=2), dict()),
            marks=only_in_full,
        ),
    ],
)
def test_splash_of_a_part_of_the_queries(span, sizes, settings):
    check(span, sizes, "splash", **settings)


def test_a_length_that_does_not_divide_is_computed_by_all():
    check(packed_span(37), dict(fsdp=2, sequence=4), window=7)


def test_what_no_query_of_a_part_sees_is_never_read(monkeypatch):
    """NaN may stand there, as 0 · NaN would show: tiles are skipped from wherever queries begin."""
    monkeypatch.setattr(module, "TILE", 8)
    span = rows_of([32, 32], [32, 32])
    q, k, v, _ = arrays(64, 64)

    @jax.jit
    def behind(k, v):
        return attention(q, k, v, span, span, 99, scale=0.4, aligned=True)[:, 32:]

    with jax.set_mesh(sharding.make_mesh(MESH)):
        wanted = behind(k, v)
        found = behind(*(x.at[:, :32].set(jnp.nan) for x in (k, v)))
    np.testing.assert_array_equal(found, wanted)


def test_keys_and_values_are_gathered_and_their_cotangents_scattered():
    """Nothing else is sent: no query, no result, no place of a token."""
    length, parts = 64, MESH["sequence"]
    program, *_ = compiled(rows_of([40, 24], [64]), MESH, "tiles")
    sent = re.findall(
        r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
        r"(?:-start)?\(",
        program.as_text(),
    )
    rows = R // MESH["fsdp"]
    sizes = {"all-gather": length, "reduce-scatter": length // parts}
    assert {kind for _, kind in sent} == set(sizes)
    for shapes, kind in sent:
        for shape in re.findall(r"\[([\d,]+)\]", shapes):
            assert np.prod([int(n) for n in shape.split(",")]) == rows * sizes[kind] * K * E
