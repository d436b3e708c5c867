"""Training a mixture of experts: its loss on any mesh in any number of micro-batches, and a run."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import loop, sharding
from ptjax.algorithms.base import Algorithm
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.forward import ForwardOptions
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.models.weights import open_safetensors
from ptjax.passes import router_aux
from ptjax.step import gradients
from ptjax.types import Mean
from tests import tiny, toy
from tests.full import only_in_full

CONFIG = replace(toy.CONFIG, family="mixtral", mlp=8, experts=4, top_k=2)
MODEL = Decoder(CONFIG, head="score")
AUX = 0.5
ARCHITECTURE = dict(
    model_type="qwen3_moe",
    architectures=["Qwen3MoeForCausalLM"],
    moe_intermediate_size=16,
    num_experts=4,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    router_aux_loss_coef=0.25,
    tie_word_embeddings=False,
)


def squares(outputs, batch):
    """A loss whose program is small."""
    return Mean.of(outputs.scores**2, batch["mask"]), {}


BOUND = Algorithm(squares, needs=("scores",), head="score").bind({}, "hparams")


def step(columns, *, accumulate=1, sizes=None, remat="none"):
    """Loss, gradients and metrics of a batch."""
    options = ForwardOptions(Compute(remat=remat))

    @functools.partial(jax.jit, compiler_options=toy.QUICK)
    def run(params, batch):
        return gradients(
            *(MODEL, BOUND, toy.state(params), batch),
            accumulate=accumulate,
            options=options,
            key=None,
            router_aux=AUX,
        )

    params = toy.params(CONFIG, "score")
    if sizes is None:
        loss, grads, metrics = run(params, jax.tree.map(jnp.asarray, columns))
    else:
        mesh = sharding.make_mesh(sizes)
        with jax.set_mesh(mesh):
            placed = toy.on_mesh(MODEL, params, mesh)
            loss, grads, metrics = run(placed, sharding.put_batch(columns, mesh))
    values = {name: float(mean.value()) for name, mean in metrics.items()}
    return np.asarray(loss), jax.tree.map(np.asarray, grads), values


@functools.cache
def alone():
    return step(toy.batch(toy.examples()))


@pytest.mark.parametrize(
    ("sizes", "accumulate", "remat"),
    [
        (dict(fsdp=2, expert=2, tensor=2), 2, "none"),
        pytest.param(dict(fsdp=2, expert=4), 1, "minimal", marks=only_in_full),
        pytest.param(dict(fsdp=2, expert=2, sequence=2), 2, "none", marks=only_in_full),
        pytest.param(None, 4, "dots_and_attention", marks=only_in_full),
    ],
)
def test_a_mesh_packed_rows_and_micro_batches_change_nothing(sizes, accumulate, remat):
    shards = sharding.batch_shards(sharding.make_mesh(sizes)) if sizes else 1
    columns = toy.packed(toy.examples(), shards=shards, accumulate=accumulate)
    got = step(columns, accumulate=accumulate, sizes=sizes, remat=remat)
    toy.assert_same(got, alone())
    assert got[2].keys() == alone()[2].keys()
    for name, value in alone()[2].items():
        np.testing.assert_allclose(got[2][name], value, rtol=1e-5, err_msg=name)


def test_the_load_balancing_loss_is_a_term_of_its_own():
    loss, _, metrics = alone()
    np.testing.assert_allclose(loss, metrics["loss/loss"] + AUX * metrics["moe/aux"], rtol=1e-6)
    assert metrics["moe/aux"] > 1.9 and metrics["moe/idle"] == 0
    assert 1 / CONFIG.experts < metrics["moe/most_loaded"] <= 1 / CONFIG.top_k


def test_experts_lie_over_their_axis_and_all_else_is_cut_over_it_too():
    mesh = sharding.make_mesh(dict(fsdp=2, expert=2, tensor=2))
    table = MODEL.table

    def spec(name):
        row = table[name]
        return tuple(sharding.partition(row.names, [16] * len(row.names), mesh))

    assert spec("layers.experts.gate") == (None, "expert", "fsdp", "tensor")
    assert spec("layers.experts.down") == (None, "expert", "tensor", "fsdp")
    assert spec("layers.router") == (None, ("fsdp", "expert"), None)
    assert spec("layers.q") == (None, ("fsdp", "expert"), "tensor", None)
    assert sharding.batch_shards(mesh) == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("moe"), **ARCHITECTURE)


@only_in_full
def test_a_run_trains_experts_and_exports_what_it_left_as_it_was(folder):
    config = tiny.tiny_config(
        folder,
        steps=3,
        trainable=r"layers\.(router|experts\..*)",
        **{"mesh.expert": 2, "eval.every": 0, "checkpoint.every": 0, "data.validation": None},
    )
    loop.train(config, str(folder / "run"), quiet=True)
    rows = tiny.rows(folder / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]
    for row in rows:
        term = 0.25 * row["moe/aux"]
        np.testing.assert_allclose(row["loss"], row["loss/loss"] + term, rtol=1e-5)
    export(str(folder / "run"), str(folder / "out"))
    written = json.loads((folder / "out" / "config.json").read_text())
    assert written == json.loads((folder / "model" / "config.json").read_text())
    before, after = open_safetensors(folder / "model"), open_safetensors(folder / "out")
    assert list(before.specs()) == list(after.specs())
    for name in before.specs():
        same = before.read(name).tobytes() == after.read(name).tobytes()
        assert same != (".mlp." in name), name


def test_the_coefficient_is_the_configs_else_the_models_own(tmp_path):
    config = tiny.tiny_config(tmp_path)
    model = Decoder(replace(CONFIG, router_aux_loss_coef=0.02))
    assert router_aux(config, model) == 0.02 and router_aux(config, toy.MODEL) == 0
    config.model.router_aux_loss_coef = 0.0
    assert router_aux(config, model) == 0 and router_aux(config, toy.MODEL) == 0
    config.model.router_aux_loss_coef = 0.1
    assert router_aux(config, model) == 0.1
    with pytest.raises(UserError, match="router_aux_loss_coef = 0.1: .* has no experts"):
        router_aux(config, toy.MODEL)
