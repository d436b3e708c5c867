"""What counts as the head of a table, and what a backward pass computes again."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from ptjax.algorithms import METHODS
from ptjax.flops import FlopCounter, Seen, output_names
from ptjax.models import body, spec
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.models.spec import Param
from ptjax.ops.span import Span
from ptjax.types import TrainState
from tests import toy

EMBED = Param("vocab embed")
INNER = {"up": Param("embed -> mlp"), "norm": Param("embed")}


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ({"embed": EMBED, **INNER}, ["embed"]),
        ({"embed": EMBED, **INNER, "head": Param("embed -> vocab")}, ["head"]),
        (
            {
                "embed": EMBED,
                "out.kernel": Param("16 -> vocab"),
                "out.kernel.lora_a": Param("16 -> rank"),
                "out.kernel.lora_b": Param("rank -> vocab"),
            },
            ["out.kernel"],
        ),
    ],
)
def test_the_head_is_what_gives_the_vocabulary(rows, names):
    assert output_names(rows) == names


def counter_of(config):
    """A model's counter in plain supervised training, and its leaves."""
    model = Decoder(config)
    leaves = spec.init(model.rows, config.dims, jax.random.key(0))
    state = TrainState(jnp.int32(0), leaves, {}, opt_state=None, guard=None)
    bound = METHODS["sft"].bind({}, "config.hparams")
    return FlopCounter(model, model.rows, state, bound), model, leaves


def products(jaxpr):
    """Flops of a traced program's products, those of a loop as often as it turns."""
    total = 0
    for eqn in jaxpr.eqns:
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += times * sum(map(products, jaxprs_in_params(eqn.params)))
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += (
                2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
            )
    return total


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(family="gemma3_text", norm="sandwich", qk_norm="head"),
        dict(family="olmo2", norm="post", qk_norm="full"),
    ],
    ids=["llama", "gemma3", "olmo2"],
)
def test_products_that_a_policy_computes_again_are_those_of_the_traced_program(
    changes, monkeypatch
):
    """With an attention that has none of its own."""

    def attention(q, k, v, *_, **__):
        return q * (jnp.sum(k) + jnp.sum(v))

    monkeypatch.setattr(body, "attention", attention)
    config = dataclasses.replace(toy.CONFIG, **changes)
    counter, model, leaves = counter_of(config)
    tokens = jnp.ones((2, 16), jnp.int32)
    span = Span(jnp.broadcast_to(jnp.arange(16), tokens.shape), tokens)

    def traced(remat):
        def loss(leaves):
            return jnp.sum(model.hidden(leaves, tokens, span, compute=Compute(remat=remat)) ** 2)

        jaxpr = jax.jit(jax.grad(loss)).trace(leaves).jaxpr.jaxpr
        return products(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0])

    seen = Seen(tokens=tokens.size, pairs=0, head_tokens=0)
    for remat in ("dots", "full", "minimal"):
        assert counter.again(seen, remat) == traced(remat) - traced("none"), remat


def test_attention_and_logits_that_are_computed_again():
    """Scores always; all of attention with `dots` and `full`; with `minimal` twice."""
    counter, *_ = counter_of(toy.CONFIG)
    seen = Seen(tokens=0, pairs=3_000, head_tokens=0)
    scores = 2 * toy.CONFIG.layers * toy.CONFIG.heads * toy.CONFIG.head_dim * seen.pairs
    times = {"none": 1, "dots_and_attention": 1, "dots": 3, "full": 3, "minimal": 5}
    assert {remat: counter.again(seen, remat) / scores for remat in times} == times
