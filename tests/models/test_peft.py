"""PEFT's adapter folders: read as PEFT reads them, described as PEFT describes them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.models import lora as lora_module
from ptjax.models import peft
from ptjax.models.convert import to_hf
from ptjax.models.decoder import Decoder
from ptjax.models.load import read_config
from ptjax.models.lora import ALL_LINEAR, Lora
from ptjax.models.weights_out import write_safetensors
from tests.golden import weights

FLOAT32 = np.dtype("float32")


@pytest.fixture
def write(tmp_path):
    """Writes a golden adapter's folder; settings and tensors may be changed on the way."""

    def folder(name="lora", change=lambda tensors: tensors, **settings):
        golden = weights.load(f"lora/{name}")
        config = golden["adapter_config"] | settings
        path = tmp_path / name
        path.mkdir()
        (path / "adapter_config.json").write_text(json.dumps(config))
        tensors = {key: weights.tensor(key, tuple(s)) for key, s in golden["shapes"].items()}
        write_safetensors(change(tensors).items(), path, stem=peft.STEM)
        return path, tensors

    return folder


def decoder(name="llama3"):
    golden = weights.load(f"models/{name}")
    return Decoder(read_config(golden["config"], name))


def read(folder, model=None):
    model = model or decoder()
    return peft.read_adapter(folder, model.table, model.config.dims)


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("lora", Lora(4, 2.0, 0.0, r"layers\.q|layers\.v|layers\.down")),
        ("lora_all", Lora(4, 2.0, 0.1, ALL_LINEAR)),
        ("rslora", Lora(5, 1.0, 0.0, ALL_LINEAR, rslora=True)),
        ("dora", Lora(6, 3.0, 0.0, ALL_LINEAR, dora=True)),
    ],
)
def test_reads_what_peft_wrote_and_names_it_the_same(write, name, lora):
    folder, tensors = write(name)
    model = decoder()
    got, leaves = read(folder)
    assert got == lora
    assert all(leaf.dtype == jnp.float32 for leaf in leaves.values())
    dims = {**model.config.dims, "rank": lora.rank}
    back = {k: t.get() for k, t in to_hf(peft.rows(model.table, got), dims, leaves, FLOAT32)}
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)


@pytest.mark.parametrize("name", ["lora", "lora_all", "rslora", "dora"])
def test_the_config_says_what_pefts_does(name):
    golden = weights.load(f"lora/{name}")["adapter_config"]
    targets = golden["target_modules"]
    lora = Lora(
        rank=golden["r"],
        alpha=float(golden["lora_alpha"]),
        dropout=golden["lora_dropout"],
        targets=ALL_LINEAR if isinstance(targets, list) else r"layers\.(q|v|down)",
        rslora=golden["use_rslora"],
        dora=golden["use_dora"],
    )
    got = peft.adapter_config(decoder().table, lora, base="llama3")
    if isinstance(targets, str):
        golden["target_modules"] = ["down_proj", "q_proj", "v_proj"]
    assert got == {key: golden[key] for key in got}


@pytest.mark.parametrize("family", ["gemma3", "olmo2", "qwen2", "llama_linear_bias"])
def test_every_family_has_a_name_for_every_adapter(family):
    model = decoder(family)
    lora = Lora(rank=3, dora=True)
    rows = peft.rows(model.table, lora)
    names = [rows[name].hf for name in lora_module.rows(model.table, lora)]
    pattern = (
        r"base_model\.model\.model\.layers\.\{\}\.(self_attn|mlp)\.\w+_proj\.lora_\w+(\.weight)?"
    )
    assert len(set(names)) == 21
    assert all(re.fullmatch(pattern, name) for name in names)


def test_leaves_that_are_held_whole(write):
    """`modules_to_save`: a head and norms beside the adapter replace the base's."""
    head = weights.tensor("head", (96, 48))
    norms = {
        f"base_model.model.model.layers.{i}.input_layernorm.weight": weights.tensor(f"n{i}", (48,))
        for i in range(3)
    }
    folder, _ = write(change=lambda t: {**t, "base_model.model.lm_head.weight": head, **norms})
    _, leaves = read(folder)
    np.testing.assert_array_equal(leaves["head"], head.T)
    np.testing.assert_array_equal(leaves["layers.attn_norm"], np.stack(list(norms.values())))


def test_a_tied_models_saved_head_is_its_embeddings(write):
    embed = weights.tensor("embed", (96, 48))
    saved = {
        "base_model.model.model.embed_tokens.weight": embed,
        "base_model.model.lm_head.weight": embed,
    }
    table = {name: param for name, param in decoder().table.items() if name != "head"}
    folder, _ = write(change=lambda t: {**t, **saved})
    _, leaves = peft.read_adapter(folder, table, decoder().config.dims)
    np.testing.assert_array_equal(leaves["embed"], embed)
    lora = Lora(targets="layers.q")
    config = peft.adapter_config(table, lora, base="b", saved=["embed", "layers.attn_norm"])
    assert config["modules_to_save"] == ["model.embed_tokens", "input_layernorm", "lm_head"]
    other = saved | {"base_model.model.lm_head.weight": embed + 1}
    write_safetensors(other.items(), folder, stem=peft.STEM)
    with pytest.raises(UserError, match="adapts no layer of this model"):
        peft.read_adapter(folder, table, decoder().config.dims)


def test_a_head_of_its_own_in_a_tied_model(write):
    head = {"base_model.model.lm_head.weight": weights.tensor("head", (96, 48))}
    table = {name: param for name, param in decoder().table.items() if name != "head"}
    folder, _ = write(change=lambda t: {**t, **head})
    with pytest.raises(UserError, match="an lm_head of its own, but the model ties its head"):
        peft.read_adapter(folder, table, decoder().config.dims)


@pytest.mark.parametrize("saved", ["layers.q", "layers.q.bias", "layers.up", "layers.down.bias"])
def test_what_an_adapter_folder_cannot_hold(saved):
    table = decoder("llama_linear_bias").table
    lora = Lora(targets=r"layers\.q")
    with pytest.raises(UserError, match=f"^{saved} was trained .* export the merged model"):
        peft.adapter_config(table, lora, base="b", saved=[saved])


def test_leaves_lie_where_the_rules_put_them(write):
    folder, _ = write("lora_all")
    model = decoder()
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    _, leaves = peft.read_adapter(folder, model.table, model.config.dims, mesh)
    _, plain = read(folder)
    assert leaves["layers.q.lora_a"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, plain[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"rank_pattern": {"o_proj": 2}}, r"rank_pattern is \{'o_proj': 2\}, which is not"),
        ({"alpha_pattern": {"o_proj": 3}}, "alpha_pattern is .* merge the adapter"),
        ({"layers_to_transform": [0, 2]}, r"layers_to_transform is \[0, 2\]"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": "4"}, "r is '4' and lora_alpha is 2: they must be numbers"),
        ({"r": 5}, r"tensor '.*lora_A.weight' has shape \(4, 48\), but .* \(5, 48\)"),
        ({"use_dora": True}, r"tensor '.*lora_magnitude_vector' is missing"),
    ],
)
def test_adapters_that_are_refused(write, settings, message):
    folder, _ = write(**settings)
    with pytest.raises(UserError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_patterns_of_pefts_own(write):
    folder, _ = write("lora_patterns")
    with pytest.raises(UserError, match="rank_pattern"):
        read(folder)


def test_a_layer_without_an_adapter(write):
    folder, _ = write(change=lambda t: {k: v for k, v in t.items() if "layers.1." not in k})
    with pytest.raises(UserError, match=r"tensor '.*layers.1.self_attn.q_proj.lora_A.weight' is"):
        read(folder)


def test_an_adapter_of_the_head(write):
    head = {
        "base_model.model.lm_head.lora_A.weight": weights.tensor("a", (4, 48)),
        "base_model.model.lm_head.lora_B.weight": weights.tensor("b", (96, 4)),
    }
    folder, _ = write(change=lambda t: {**t, **head})
    with pytest.raises(UserError, match="lm_head.lora_A.weight' belongs to no parameter"):
        read(folder)


def test_an_adapter_of_another_model(write):
    folder, _ = write()
    with pytest.raises(UserError, match="shape|missing"):
        read(folder, decoder("qwen3"))


def test_folders_without_an_adapter(tmp_path):
    with pytest.raises(UserError, match="no adapter_config.json; is this an adapter's folder"):
        read(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config.json: cannot be read"):
        read(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 1}')
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="adapter_model.bin: convert it"):
        read(tmp_path)
