"""GGUF files written here with gguf's own writer, read back as Hugging Face checkpoints."""

import os
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.models.gguf import gguf_config, open_gguf
from ptjax.models.gguf_file import read_gguf
from ptjax.models.hub import resolve_source
from ptjax.models.load import read_config

LAYERS, WIDTH, HEADS, KV, HEAD_DIM, INNER, VOCAB = 6, 32, 4, 2, 16, 64, 20
ARCHS = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
}


def hf_shapes(arch):
    """Names and shapes as the family's Hugging Face implementation has them."""
    q, kv = HEADS * HEAD_DIM, KV * HEAD_DIM
    shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    layer = {
        "self_attn.q_proj.weight": (q, WIDTH),
        "self_attn.k_proj.weight": (kv, WIDTH),
        "self_attn.v_proj.weight": (kv, WIDTH),
        "self_attn.o_proj.weight": (WIDTH, q),
        "mlp.gate_proj.weight": (INNER, WIDTH),
        "mlp.up_proj.weight": (INNER, WIDTH),
        "mlp.down_proj.weight": (WIDTH, INNER),
        "post_attention_layernorm.weight": (WIDTH,),
    }
    if arch != "olmo2":
        layer["input_layernorm.weight"] = (WIDTH,)
    if arch in ("gemma2", "gemma3"):
        layer["pre_feedforward_layernorm.weight"] = (WIDTH,)
    if arch in ("gemma2", "gemma3", "olmo2"):
        layer["post_feedforward_layernorm.weight"] = (WIDTH,)
    if arch in ("qwen3", "qwen3moe", "gemma3"):
        layer |= {"self_attn.q_norm.weight": (HEAD_DIM,), "self_attn.k_norm.weight": (HEAD_DIM,)}
    if arch == "olmo2":
        layer |= {"self_attn.q_norm.weight": (q,), "self_attn.k_norm.weight": (kv,)}
    if arch == "qwen2":
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,)}
        layer["self_attn.v_proj.bias"] = (kv,)
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    if arch in ("olmo2", "qwen3"):
        shapes["lm_head.weight"] = (VOCAB, WIDTH)
    return shapes


def as_converter_stores(arch, name, values):
    """What llama.cpp's conversion does to a tensor."""
    heads = HEADS if ".q_proj." in name else KV if ".k_proj." in name else None
    if arch in ("llama", "smollm3") and heads:
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    return values + 1 if arch in ("gemma2", "gemma3") and name.endswith("norm.weight") else values


def write_sample(path, arch, *, extra=None, tensors=None, quantize=None, context=512, dense=True):
    """Writes a tiny checkpoint; returns its tensors under Hugging Face names."""
    rng = np.random.default_rng(0)
    shapes = {n: s for n, s in hf_shapes(arch).items() if dense or ".mlp." not in n}
    values = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in (extra or {}).items():
        writer.add_key_value(key, *value)
    names = gguf.get_tensor_name_map(ARCHS[arch.removesuffix("moe")], LAYERS)
    for name, array in values.items():
        stored = as_converter_stores(arch, name, array)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if quantize and array.ndim == 2:
            data = gguf.quants.quantize(stored, quantize)
            writer.add_tensor(target, data, raw_dtype=quantize)
        else:
            writer.add_tensor(target, stored)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("arch", ARCHS)
def test_every_tensor_of_every_family_comes_back(arch, tmp_path):
    values = write_sample(tmp_path / "m.gguf", arch)
    source = open_gguf(tmp_path / "m.gguf", gguf_config(tmp_path / "m.gguf"))
    assert {name: spec.shape for name, spec in source.specs().items()} == hf_shapes(arch)
    for name, array in values.items():
        read = source.read(name)
        assert read.dtype == np.float32 and read.flags.writeable
        np.testing.assert_allclose(read, array, rtol=0, atol=2e-7, err_msg=name)


@pytest.mark.parametrize(
    ("arch", "kind", "names"),
    [
        ("llama", "mixtral", ("block_sparse_moe", "w1", "w3", "w2")),
        ("qwen3moe", "qwen3_moe", ("mlp", "gate_proj", "up_proj", "down_proj")),
    ],
)
def test_experts_come_back_one_by_one(arch, kind, names, tmp_path):
    block, *kernels = names
    draw, u32 = np.random.default_rng(1), gguf.GGUFValueType.UINT32
    stored, wanted = {}, {}
    for i in range(LAYERS):
        router = draw.normal(size=(3, WIDTH)).astype(np.float32)
        stored[f"blk.{i}.ffn_gate_inp.weight"] = router
        wanted[f"model.layers.{i}.{block}.gate.weight"] = router
        for part, name in zip(("gate", "up", "down"), kernels, strict=True):
            shape = (3, WIDTH, 8) if part == "down" else (3, 8, WIDTH)
            stored[f"blk.{i}.ffn_{part}_exps.weight"] = draw.normal(size=shape).astype(np.float32)
            for e, one in enumerate(stored[f"blk.{i}.ffn_{part}_exps.weight"]):
                wanted[f"model.layers.{i}.{block}.experts.{e}.{name}.weight"] = one
    path, counts = tmp_path / "m.gguf", {"expert_count": 3, "expert_used_count": 2}
    extra = {**counts, "expert_feed_forward_length": 8}
    extra = {f"{arch}.{key}": (value, u32) for key, value in extra.items()}
    values = write_sample(path, arch, extra=extra, tensors=stored, dense=False)
    config = gguf_config(path)
    assert config["model_type"] == kind and config["num_experts_per_tok"] == 2
    read = read_config(config, "gguf")
    assert (read.experts, read.top_k, read.norm_topk) == (3, 2, True)
    assert read.mlp == (8 if arch == "qwen3moe" else INNER)
    source = open_gguf(path, config)
    assert source.specs().keys() == (values | wanted).keys()
    for name, array in wanted.items():
        assert source.specs()[name].shape == array.shape
        np.testing.assert_array_equal(source.read(name), array)
        np.testing.assert_array_equal(source.read(name, (slice(1, 3),)), array[1:3])


def test_a_slice_equals_the_slice_of_the_whole(tmp_path):
    write_sample(tmp_path / "m.gguf", "llama", quantize=gguf.GGMLQuantizationType.Q8_0)
    source = open_gguf(tmp_path / "m.gguf", gguf_config(tmp_path / "m.gguf"))
    index = (slice(8, 16), slice(0, 16))
    for name, spec in source.specs().items():
        whole = source.read(name)
        for part in (index[: len(spec.shape)], index[:1], ()):
            np.testing.assert_array_equal(source.read(name, part), whole[part], err_msg=name)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "F16", "BF16"])
def test_quantized_tensors_are_what_gguf_dequantizes(kind, tmp_path):
    quantize = gguf.GGMLQuantizationType[kind]
    values = write_sample(tmp_path / "m.gguf", "qwen3", quantize=quantize)
    source = open_gguf(tmp_path / "m.gguf", gguf_config(tmp_path / "m.gguf"))
    for name in ("model.embed_tokens.weight", "model.layers.3.mlp.down_proj.weight"):
        expected = gguf.quants.dequantize(gguf.quants.quantize(values[name], quantize), quantize)
        np.testing.assert_array_equal(source.read(name), expected)


@pytest.mark.parametrize("arch", ARCHS)
def test_transformers_reads_the_config_as_meant(arch, tmp_path):
    from transformers import AutoConfig

    write_sample(tmp_path / "m.gguf", arch)
    config = gguf_config(tmp_path / "m.gguf")
    assert config["rope_theta"] == 500000.0
    theirs = AutoConfig.for_model(**config).to_dict()
    for key in set(config) & set(theirs):
        assert theirs[key] == config[key], key
    known = {"rope_theta", "rope_local_base_freq", "attention_bias", "head_dim", "mlp_bias"}
    assert set(config) - set(theirs) <= known
    assert config["tie_word_embeddings"] == (arch not in ("olmo2", "qwen3"))
    assert (config["vocab_size"], config["num_key_value_heads"]) == (VOCAB, KV)


def test_families_keep_their_own_settings(tmp_path):
    u32, f32, string = (gguf.GGUFValueType[k] for k in ("UINT32", "FLOAT32", "STRING"))
    path = tmp_path / "m.gguf"
    write_sample(
        path,
        "gemma2",
        extra={
            "gemma2.attention.sliding_window": (128, u32),
            "gemma2.final_logit_softcapping": (20.0, f32),
        },
    )
    config = gguf_config(path)
    assert config["layer_types"][:2] == ["sliding_attention", "full_attention"]
    assert (config["sliding_window"], config["final_logit_softcapping"]) == (128, 20.0)
    assert (config["attn_logit_softcapping"], config["query_pre_attn_scalar"]) == (50.0, HEAD_DIM)
    write_sample(
        path,
        "gemma3",
        extra={
            "gemma3.rope.scaling.type": ("linear", string),
            "gemma3.rope.scaling.factor": (8.0, f32),
        },
    )
    assert set(gguf_config(path)["layer_types"]) == {"full_attention"}
    write_sample(
        path,
        "gemma3",
        extra={
            "gemma3.attention.sliding_window": (512, u32),
            "gemma3.rope.scaling.type": ("linear", string),
            "gemma3.rope.scaling.factor": (8.0, f32),
        },
    )
    config = gguf_config(path)
    assert (config["layer_types"].index("full_attention"), config["sliding_window"]) == (5, 512)
    assert config["rope_parameters"]["full_attention"]["factor"] == 8.0
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000.0
    write_sample(path, "smollm3")
    assert gguf_config(path)["no_rope_layers"] == [1, 1, 1, 0, 1, 1]
    write_sample(path, "llama", extra={"general.name": ("Mistral 7B", string)})
    config = gguf_config(path)
    assert (config["model_type"], config["sliding_window"]) == ("mistral", None)
    write_sample(path, "llama", extra={"llama.attention.sliding_window": (64, u32)})
    assert gguf_config(path)["sliding_window"] == 64


def llama3_divisors(factor, theta=500000.0, low=1.0, high=4.0, original=8192):
    """Llama 3.1's rule for each frequency, written out case by case."""
    divisors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * np.pi * theta ** (i / HEAD_DIM)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def test_llama3_rope_scaling_is_recovered_from_its_divisors(tmp_path):
    path = tmp_path / "m.gguf"
    write_sample(
        path, "llama", tensors={"rope_freqs.weight": llama3_divisors(32.0)}, context=131072
    )
    config = gguf_config(path)
    expected = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert config["rope_scaling"] == expected
    assert config["rope_parameters"] == {"rope_theta": 500000.0, **expected}
    assert "rope_freqs.weight" not in open_gguf(path, config).names.values()
    wrong = llama3_divisors(32.0) ** 2
    write_sample(path, "llama", tensors={"rope_freqs.weight": wrong})
    with pytest.raises(UserError, match="rope_freqs"):
        gguf_config(path)


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_sample(path, "qwen2", tensors={"blk.0.ssm_a": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="ssm_a"):
        open_gguf(path, gguf_config(path))
    gguf.GGUFWriter(str(path), "gemm")
    writer = gguf.GGUFWriter(str(path), "qwen33")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="qwen33.*did you mean 'qwen3'"):
        gguf_config(path)
    path.write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(UserError, match="not a GGUF file"):
        gguf_config(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="truncated"):
        gguf_config(path)
    with pytest.raises(UserError, match="No such file"):
        gguf_config(tmp_path / "absent.gguf")


def test_every_truncation_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_sample(path, "llama", quantize=gguf.GGMLQuantizationType.Q8_0)
    whole = path.read_bytes()
    last = max(t.offset + t.nbytes for t in read_gguf(path).tensors.values())
    rng = random.Random(0)
    for size in [0, 3, 23, last - 1, *(rng.randrange(last) for _ in range(100))]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="truncated|multiple|not a GGUF"):
            gguf_config(path)


def test_a_damaged_header_is_rejected_or_harmless(tmp_path):
    path = tmp_path / "m.gguf"
    write_sample(path, "llama", quantize=gguf.GGMLQuantizationType.Q8_0)
    whole = path.read_bytes()
    header = min(t.offset for t in read_gguf(path).tensors.values())
    rng = random.Random(0)
    rejected = 0
    for _ in range(300):
        data = bytearray(whole)
        at = rng.randrange(header - 8)
        if rng.random() < 0.3:
            data[at : at + 8] = struct.pack("<Q", rng.choice([2**63, 2**40, 0, rng.randrange(999)]))
        else:
            data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            source = open_gguf(path, gguf_config(path))
            shapes = {name: source.read(name).shape for name in source.specs()}
            assert shapes == {name: spec.shape for name, spec in source.specs().items()}
        except UserError as error:
            assert str(path) in str(error)
            rejected += 1
    assert rejected > 100


def test_the_registered_model_reads():
    try:
        path = resolve_source("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))
    config = gguf_config(path)
    source = open_gguf(path, config)
    assert config["rms_norm_eps"] == 1e-5 and config["head_dim"] == 64
    assert sum(int(np.prod(spec.shape)) for spec in source.specs().values()) == 134_515_008
    assert source.read("model.layers.0.self_attn.q_proj.weight").shape == (576, 576)
    assert os.fspath(path) == source.origin and Path(source.origin).is_file()
