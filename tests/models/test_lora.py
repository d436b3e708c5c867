"""LoRA, rsLoRA and DoRA against PEFT on a small Llama, and what any adapter must keep."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.models import lora as lora_module
from ptjax.models import peft
from ptjax.models.convert import from_hf, to_hf
from ptjax.models.decoder import Decoder
from ptjax.models.load import read_config
from ptjax.models.lora import ALL_LINEAR, Lora
from ptjax.models.weights import TensorSpec
from ptjax.models.weights_out import write_safetensors
from ptjax.ops.span import Span
from tests.golden import weights

NAMES = ["lora", "lora_all", "rslora", "dora"]
FLOAT32 = np.dtype("float32")


class Memory:
    """A checkpoint that lies in a dict."""

    origin = "memory"

    def __init__(self, tensors):
        self.tensors = tensors

    def specs(self):
        return {name: TensorSpec(t.shape, t.dtype) for name, t in self.tensors.items()}

    def read(self, name, index=None):
        return self.tensors[name][index or ()]


@pytest.fixture(scope="module")
def base():
    golden = weights.load("models/llama3")
    config = read_config(golden["config"], "llama3")
    model = Decoder(config)
    tensors = weights.state_dict(golden["shapes"], golden["config"])
    return golden, model, from_hf(model.table, config.dims, Memory(tensors))


def write_golden(folder, name):
    """The adapter folder that PEFT wrote for a golden file."""
    golden = weights.load(f"lora/{name}")
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(golden["adapter_config"]))
    tensors = {key: weights.tensor(key, tuple(s)) for key, s in golden["shapes"].items()}
    write_safetensors(tensors.items(), folder, stem=peft.STEM)
    return golden, tensors


@pytest.fixture
def adapted(base, tmp_path, request):
    """(golden, model, base parameters, adapter leaves) for the adapter named by the test."""
    golden, _ = write_golden(tmp_path / "adapter", request.param)
    inputs, model, params = base
    lora, leaves = peft.read_adapter(tmp_path / "adapter", model.table, model.config.dims)
    return {**inputs, **golden}, replace(model, lora=lora), params, leaves


def span(golden):
    return Span(jnp.asarray(golden["positions"]), jnp.asarray(golden["valid"]).astype(jnp.int32))


def logits(model, params, golden, key=None):
    return _logits(model, params, jnp.asarray(golden["ids"]), span(golden), key)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, ids, where, key):
    return model.logits(params, model.hidden(params, ids, where, key=key))


def nll(model, params, golden):
    ids, valid = jnp.asarray(golden["ids"]), jnp.asarray(golden["valid"])
    logps = jax.nn.log_softmax(logits(model, params, golden))[:, :-1]
    picked = jnp.take_along_axis(logps, ids[:, 1:, None], -1)[..., 0]
    weight = valid[:, 1:] & valid[:, :-1]
    return -jnp.sum(picked * weight) / weight.sum()


@pytest.mark.parametrize("adapted", NAMES, indirect=True)
def test_logits_equal_pefts(adapted):
    golden, model, params, leaves = adapted
    got = logits(model, {**params, **leaves}, golden)
    got = np.where(golden["valid"][..., None], got, 0)
    assert np.abs(got - golden["logits"]).max() < 2e-4
    plain = np.where(golden["valid"][..., None], logits(model, params, golden), 0)
    assert np.abs(plain - golden["logits"]).max() > 0.05


@pytest.mark.parametrize("adapted", ["lora_all", "rslora", "dora"], indirect=True)
def test_gradients_equal_pefts(adapted):
    golden, model, params, leaves = adapted
    loss = jax.jit(jax.value_and_grad(lambda p: nll(model, {**params, **p}, golden)))
    value, gradients = loss(leaves)
    np.testing.assert_allclose(value, golden["nll"], rtol=1e-5)
    dims = {**model.config.dims, "rank": model.lora.rank}
    rows = peft.rows(model.table, model.lora)
    tensors = to_hf(rows, dims, gradients, FLOAT32)
    got = {key: weights.summary(key, tensor.get()) for key, tensor in tensors}
    assert got.keys() == golden["shapes"].keys()
    for name, wanted in zip(golden["shapes"], golden["gradients"], strict=True):
        assert wanted[1] > 0, name
        np.testing.assert_allclose(got[name], wanted, atol=2e-4 * (1 + wanted[1]), err_msg=name)


@pytest.mark.parametrize("adapted", NAMES, indirect=True)
def test_merged_weights_equal_pefts(adapted):
    golden, model, params, leaves = adapted
    merged = lora_module.merge({**params, **leaves}, model.table, model.lora)
    assert merged.keys() == params.keys()
    tensors = dict(to_hf(model.table, model.config.dims, merged, FLOAT32))
    for key, wanted in golden["merged"].items():
        got = weights.summary(key, tensors[key].get())
        np.testing.assert_allclose(got, wanted, atol=1e-4 * (1 + wanted[1]), err_msg=key)
    before = dict(to_hf(model.table, model.config.dims, params, FLOAT32))
    for key in before.keys() - golden["merged"].keys():
        np.testing.assert_array_equal(tensors[key].get(), before[key].get(), err_msg=key)


@pytest.mark.parametrize("adapted", NAMES, indirect=True)
def test_merging_changes_nothing(adapted):
    golden, model, params, leaves = adapted
    beside = logits(model, {**params, **leaves}, golden)
    merged = lora_module.merge({**params, **leaves}, model.table, model.lora)
    inside = logits(replace(model, lora=None), merged, golden)
    seen = golden["valid"][..., None]
    assert np.abs(np.where(seen, beside - inside, 0)).max() < 1e-5


@pytest.mark.parametrize("dora", [False, True])
def test_a_new_adapter_leaves_the_model_as_it_is(base, dora):
    golden, model, params = base
    lora = Lora(rank=4, alpha=8.0, dora=dora)
    leaves = lora_module.add(params, model.table, model.config.dims, lora, jax.random.key(0))
    adapted = logits(replace(model, lora=lora), {**params, **leaves}, golden)
    seen = golden["valid"][..., None]
    before = logits(model, params, golden)
    np.testing.assert_allclose(np.where(seen, adapted, 0), np.where(seen, before, 0), atol=1e-5)
    assert all(np.any(leaf) for name, leaf in leaves.items() if name.endswith("lora_a"))


def test_a_new_adapter_depends_on_the_key_alone(base):
    _, model, params = base
    made = [
        lora_module.add(params, model.table, model.config.dims, Lora(rank=4), jax.random.key(seed))
        for seed in (0, 0, 1)
    ]
    for name, leaf in made[0].items():
        np.testing.assert_array_equal(leaf, made[1][name])
    assert np.any(made[0]["layers.q.lora_a"] != made[2]["layers.q.lora_a"])


@pytest.mark.parametrize("adapted", ["lora_all", "dora"], indirect=True)
def test_dropout_acts_in_training_alone_and_by_the_key(adapted):
    golden, model, params, leaves = adapted
    model = replace(model, lora=replace(model.lora, dropout=0.5))
    everything = {**params, **leaves}
    one, again, other = (
        logits(model, everything, golden, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    evaluated = np.where(golden["valid"][..., None], logits(model, everything, golden), 0)
    assert np.abs(evaluated - golden["logits"]).max() < 2e-4


def test_dropout_drops_the_adapters_input_and_nothing_else(base):
    """With B = 0 the adapter adds nothing, so dropout must not show."""
    golden, model, params = base
    lora = Lora(rank=4, dropout=0.5)
    leaves = lora_module.add(params, model.table, model.config.dims, lora, jax.random.key(0))
    dropped = logits(replace(model, lora=lora), {**params, **leaves}, golden, jax.random.key(1))
    seen = golden["valid"][..., None]
    before = logits(model, params, golden)
    np.testing.assert_allclose(np.where(seen, dropped, 0), np.where(seen, before, 0), atol=1e-5)


@pytest.mark.parametrize("targets", ["q_proj", "layers.Q", "embed", "head", ""])
def test_targets_that_match_nothing(base, targets):
    _, model, _ = base
    with pytest.raises(UserError, match=r"lora.targets .* matches none of: layers.q, layers.k"):
        lora_module.rows(model.table, Lora(targets=targets))


def test_heads_have_no_adapters(base):
    _, model, _ = base
    for head in ("lm", "score"):
        table = replace(model, head=head).table
        rows = lora_module.rows(table, Lora(targets=".*"))
        assert rows and all(name.startswith("layers.") for name in rows)


def test_targets_choose_whole_names(base):
    _, model, _ = base
    rows = lora_module.rows(model.table, Lora(targets=r"layers\.(q|down)"))
    assert {name.rpartition(".")[0] for name in rows} == {"layers.q", "layers.down"}
    assert len(lora_module.rows(model.table, Lora(targets=ALL_LINEAR, dora=True))) == 21


def test_the_gradient_of_doras_magnitude_is_that_of_a_finite_difference(base):
    golden, model, params = base
    lora = Lora(rank=4, alpha=4.0, dora=True, targets=r"layers\.(q|down)")
    model = replace(model, lora=lora)
    leaves = lora_module.add(params, model.table, model.config.dims, lora, jax.random.key(0))
    leaves["layers.q.lora_b"] = 0.1 * jax.random.normal(
        jax.random.key(1), leaves["layers.q.lora_b"].shape
    )
    loss = jax.jit(lambda m: nll(model, {**params, **leaves, "layers.down.dora_m": m}, golden))
    magnitude = leaves["layers.down.dora_m"]
    direction = jax.random.normal(jax.random.key(2), magnitude.shape)
    slope = jnp.vdot(jax.grad(loss)(magnitude), direction)
    step = 1e-2
    difference = (loss(magnitude + step * direction) - loss(magnitude - step * direction)) / (
        2 * step
    )
    np.testing.assert_allclose(slope, difference, rtol=2e-2)
    assert abs(slope) > 1e-3
