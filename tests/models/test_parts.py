"""Heads and hidden units in parts: the same gradients, and no array of them all."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.models import spec
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.models.lora import Lora
from ptjax.models.quantised import quantised
from ptjax.ops.span import Span
from ptjax.sharding import one_device
from tests import toy

TOKENS = 11
IDS = jnp.arange(2 * TOKENS, dtype=jnp.int32).reshape(2, TOKENS) + 3
SPAN = Span(jnp.broadcast_to(jnp.arange(TOKENS), IDS.shape), jnp.ones_like(IDS))


def loss(leaves, frozen, model, remat, key=None):
    params = {**frozen, **leaves}
    hidden = model.hidden(params, IDS, SPAN, compute=Compute(remat=remat), key=key)
    return jnp.mean(jnp.square(model.logits(params, hidden)))


@functools.partial(jax.jit, static_argnums=(2, 3), compiler_options=toy.QUICK)
def made(leaves, frozen, model, remat, key=None):
    return jax.value_and_grad(loss)(leaves, frozen, model, remat, key)


def adapted(base="none", **settings):
    """Adapters that do something, and what they are on."""
    model = Decoder(toy.CONFIG, Lora(rank=2, **settings))
    rows = model.rows
    rows |= {n: row._replace(init="embed") for n, row in rows.items() if n.endswith("lora_b")}
    leaves = spec.init(rows, {**model.config.dims, "rank": 2}, jax.random.key(3))
    frozen = {name: leaves.pop(name) for name in model.table}
    if base != "none":
        frozen = quantised(frozen, model.table, base, one_device())
    return leaves, frozen, model


@pytest.mark.parametrize("settings", [dict(base="int8"), dict(dora=True)], ids=["int8", "dora"])
def test_adapters(settings):
    one, other = (made(*adapted(**settings), remat) for remat in ("minimal", "none"))
    toy.assert_same(jax.tree.map(np.asarray, one), jax.tree.map(np.asarray, other))


def test_dropout_is_drawn_again_as_it_was():
    """A derivative along the adapters = finite differences, which a new draw would not give."""
    leaves, frozen, model = adapted(dropout=0.5)
    key = jax.random.key(2)
    value, gradients = made(leaves, frozen, model, "minimal", key)
    assert value != made(leaves, frozen, model, "minimal", jax.random.key(3))[0]
    step = 2e-4
    along = {name: leaf + step * gradients[name] for name, leaf in leaves.items()}
    against = {name: leaf - step * gradients[name] for name, leaf in leaves.items()}
    up, down = (made(at, frozen, model, "minimal", key)[0] for at in (along, against))
    wanted = sum(jnp.sum(jnp.square(leaf)) for leaf in gradients.values())
    np.testing.assert_allclose((up - down) / (2 * step), wanted, rtol=1e-2)


@pytest.mark.parametrize(("remat", "whole"), [("full", True), ("minimal", False)])
def test_no_array_has_the_heads_or_hidden_units_of_all_tokens(remat, whole):
    config = toy.CONFIG
    assert 2 * TOKENS != config.embed and config.heads * config.head_dim == config.embed
    traced = jax.jit(jax.grad(loss), static_argnums=(2, 3)).trace(*adapted(), remat)
    sizes = {
        tuple(map(int, one.split(","))) for one in re.findall(r"\[([\d,]+)\]", str(traced.jaxpr))
    }
    heads = {(2, TOKENS, config.heads, config.head_dim), (2, TOKENS, config.mlp)}
    assert bool(heads & sizes) == whole
