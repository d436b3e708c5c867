"""What counts as the head of a table, and what a backward pass computes again."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ptjax.algorithms import METHODS
from ptjax.flops import FlopCounter, Seen, output_names
from ptjax.models import spec
from ptjax.models.decoder import Decoder
from ptjax.models.spec import Param
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


def test_what_each_policy_computes_again():
    """Closed forms of one step: projections are 2 flops a weight and token, attention 4 a pair."""
    model = Decoder(toy.CONFIG)
    rows, config = model.rows, toy.CONFIG
    leaves = spec.init(rows, config.dims, jax.random.key(0))
    state = TrainState(jnp.int32(0), leaves, {}, opt_state=None, guard=None)
    bound = METHODS["sft"].bind({}, "config.hparams")
    counter = FlopCounter(model, rows, state, bound)
    seen = Seen(tokens=100, pairs=3_000, head_tokens=7)
    width, embed = config.layers * config.heads * config.head_dim, config.embed
    q_and_o = 2 * embed * width
    k_and_v = 2 * embed * config.layers * config.kv_heads * config.head_dim
    fed = 3 * config.layers * embed * config.mlp
    scores = 2 * width * seen.pairs
    full = scores + 2 * scores + 2 * seen.tokens * (q_and_o + k_and_v + fed)
    wanted = {
        "none": scores,
        "dots_and_attention": scores,
        "dots": 3 * scores,
        "full": full,
        "minimal": full + 2 * scores + 2 * seen.tokens * (q_and_o + k_and_v),
    }
    assert {remat: counter.again(seen, remat) for remat in wanted} == wanted
    whole = Decoder(dataclasses.replace(config, qk_norm="full"))
    counter = FlopCounter(whole, whole.rows, state, bound)
    assert counter.again(seen, "minimal") == counter.again(seen, "full")
