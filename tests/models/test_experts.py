"""A layer of experts: each token through its own, padding through none; adapters; refusals."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.flops import _active
from ptjax.models import lora as lora_module
from ptjax.models import peft, spec
from ptjax.models.decoder import Decoder
from ptjax.models.experts import mixture
from ptjax.models.load import read_config
from ptjax.models.lora import Lora
from ptjax.plan.architectures import ARCHITECTURES, architecture
from tests import toy
from tests.full import only_in_full

CONFIG = replace(toy.CONFIG, family="mixtral", layers=1, mlp=6, experts=4, top_k=2)
LORA = Lora(rank=3, alpha=6.0, targets=r"layers\.experts\.(gate|up|down)")
MODEL = Decoder(CONFIG, lora=LORA)
VALID = np.array([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)


@functools.cache
def layer():
    """One layer's leaves, adapters that change something among them."""
    params = toy.params(CONFIG)
    rows = lora_module.rows(MODEL.table, LORA)
    adapters = spec.init(
        {name: row._replace(init="normal") for name, row in rows.items()},
        {**CONFIG.dims, "rank": LORA.rank},
        jax.random.key(3),
    )
    return {k: v for k, v in {**params, **adapters}.items() if k.startswith("layers.")}


def one(params):
    return {name.removeprefix("layers."): leaf[0] for name, leaf in params.items()}


@functools.partial(jax.jit, compiler_options=toy.QUICK, static_argnames="config")
def run(params, x, config):
    return mixture(params, x, jnp.asarray(VALID), config, LORA)


def by_hand(params, x, *, norm):
    """The same for one token, expert by expert; and where it went."""
    logits = x @ params["router"]
    probs = np.exp(logits) / np.exp(logits).sum()
    chosen = np.argsort(-probs)[: CONFIG.top_k]
    shares = probs[chosen] / (probs[chosen].sum() if norm else 1)
    out = 0.0
    for share, e in zip(shares, chosen, strict=True):
        gate, up = x @ params["experts.gate"][e], x @ params["experts.up"][e]
        out = out + share * (gate / (1 + np.exp(-gate)) * up) @ params["experts.down"][e]
    return out, chosen, probs


@only_in_full
@pytest.mark.parametrize("norm", [True, False])
def test_each_token_goes_through_its_own_experts_and_padding_through_none(norm):
    merged = one(lora_module.merge(layer(), MODEL.table, LORA))
    x = np.random.RandomState(0).standard_normal((2, 5, CONFIG.embed)).astype(np.float32)
    x[~VALID] = np.nan
    out, routing = run(one(layer()), jnp.asarray(x), replace(CONFIG, norm_topk=norm))
    assert not np.asarray(out)[~VALID].any()
    load, total = np.zeros(CONFIG.experts), 0.0
    for token, got in zip(x[VALID], np.asarray(out)[VALID], strict=True):
        wanted, chosen, probs = by_hand(jax.tree.map(np.asarray, merged), token, norm=norm)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        load[chosen] += 1
        total = total + probs
    np.testing.assert_array_equal(routing.load, load)
    np.testing.assert_allclose(routing.probs, total, rtol=1e-5)


@only_in_full
def test_rows_that_do_not_divide_over_a_mesh_go_through_the_same_experts():
    x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 5, CONFIG.embed)), jnp.float32)
    wanted = run(one(layer()), x, CONFIG)
    with jax.set_mesh(sharding.make_mesh(dict(fsdp=2, expert=2, tensor=2))):
        got = run(one(layer()), x, CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, wanted)


def test_adapters_of_experts_merge_and_have_neither_dora_nor_dropout():
    assert layer()["layers.experts.down.lora_a"].shape == (1, 4, 6, 3)
    for changes in (dict(dora=True), dict(dropout=0.1)):
        with pytest.raises(
            UserError, match="layers.experts.gate: adapters of experts have neither"
        ):
            lora_module.rows(MODEL.table, replace(LORA, **changes))
    with pytest.raises(UserError, match="layers.experts.gate has adapters.*export the merged"):
        peft.adapter_config(MODEL.table, LORA, base="x")


def test_default_targets_are_those_of_attention_and_never_the_router():
    names = {name.rpartition(".")[0] for name in lora_module.rows(MODEL.table, Lora())}
    assert names == {f"layers.{kernel}" for kernel in "qkvo"}
    everything = lora_module.rows(MODEL.table, Lora(targets=".*"))
    assert "layers.experts.up.lora_a" in everything and "layers.router.lora_a" not in everything


def test_a_token_is_multiplied_with_its_experts_alone():
    config = architecture("qwen3-30b-a3b")
    rows = Decoder(config).table
    sizes = {name: int(np.prod(spec.shape(row, config.dims))) for name, row in rows.items()}
    active = sum(_active(size, rows[name], config) for name, size in sizes.items())
    assert active == 3_353_032_704  # "A3B"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen3-30b-a3b", {"mlp_only_layers": [0]}, "layers without experts"),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, "layers without experts"),
        ("qwen3-30b-a3b", {"num_experts_per_tok": 129}, "129 of 128 experts for each token"),
        ("mixtral-8x7b", {"router_jitter_noise": 0.1}, "router_jitter_noise is not supported"),
    ],
)
def test_what_is_not_supported_is_one_line(name, change, message):
    with pytest.raises(UserError, match=message):
        read_config(ARCHITECTURES[name] | change, name)
