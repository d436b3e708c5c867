"""Makes models/*.npz: logits and gradients of small random models of every family.

    pip install torch transformers==5.23 safetensors
    python -m tests.golden.make_models [NAME ...]

Each file (read with `tests.golden.weights.load("models/NAME")`) holds

    config        config.json as transformers 5 writes it (`rope_parameters`)
    hub_config    the same model in the config.json style of the hub (`rope_theta`, `rope_scaling`)
    shapes        {name: shape} of the tensors that `save_pretrained` writes, tied ones absent
    ids           int32 [3, T]; row 0 is full, row 1 padded on the right, row 2 on the left
    valid         bool [3, T], the attention mask
    positions     int32 [3, T], counted from each row's first valid token, 0 on the left padding
    logits        float32 [3, T, V], eager attention, 0 where not valid
    nll           float64, mean of -log p(ids[t] | before) over all t with t-1 and t valid
    gradients     float64 [len(shapes), 3], `weights.summary` of d nll / d tensor in `shapes`' order
    aux           float64, of a mixture of experts: its load-balancing loss. Its `gradients` are
                  those of nll + aux

The weights are `weights.state_dict(shapes, config)`.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.golden import weights

T, V = 28, 96
LENGTHS = (28, 19, 22)

BASE = dict(
    vocab_size=V,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    hidden_act="silu",
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    attention_dropout=0.0,
    initializer_range=0.02,
    torch_dtype="float32",
    use_cache=True,
)
LLAMA = dict(model_type="llama", architectures=["LlamaForCausalLM"], pretraining_tp=1)
QWEN2 = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], rms_norm_eps=1e-6)
GEMMA = dict(
    hidden_activation="gelu_pytorch_tanh",
    hidden_act="gelu_pytorch_tanh",
    rms_norm_eps=1e-6,
    head_dim=16,
    query_pre_attn_scalar=10,
    attention_bias=False,
)

# config.json as the hub's checkpoints of each family have it, every feature acting at this size.
FAMILIES = {
    "llama3": LLAMA
    | dict(
        tie_word_embeddings=False,
        rope_theta=10000.0,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama2": LLAMA | dict(tie_word_embeddings=False, num_key_value_heads=4, rope_scaling=None),
    "llama_linear_bias": LLAMA
    | dict(
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        rope_scaling=dict(type="linear", factor=4.0),
    ),
    "llama_yarn": LLAMA
    | dict(
        tie_word_embeddings=False,
        head_dim=16,
        rope_scaling=dict(
            rope_type="yarn",
            factor=8.0,
            original_max_position_embeddings=16,
            beta_fast=4.0,
            beta_slow=0.5,
            mscale=0.8,
            mscale_all_dim=0.3,
            truncate=False,
        ),
    ),
    "mistral": dict(
        model_type="mistral",
        architectures=["MistralForCausalLM"],
        sliding_window=7,
        tie_word_embeddings=False,
        rope_theta=1e6,
    ),
    # As in Qwen2.5's config.json: a window is given, and not used.
    "qwen2": QWEN2
    | dict(
        tie_word_embeddings=True,
        use_sliding_window=False,
        sliding_window=5,
        max_window_layers=2,
        rope_theta=1e6,
    ),
    "qwen2_window": QWEN2
    | dict(
        tie_word_embeddings=False,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
    ),
    # As Qwen2.5's model cards say to write it for long texts.
    "qwen2_yarn": QWEN2
    | dict(
        tie_word_embeddings=False,
        use_sliding_window=False,
        rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    "qwen3": dict(
        model_type="qwen3",
        architectures=["Qwen3ForCausalLM"],
        head_dim=20,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        attention_bias=False,
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=3,
        rope_theta=1e6,
        rope_scaling=None,
    ),
    "mixtral": dict(
        model_type="mixtral",
        architectures=["MixtralForCausalLM"],
        num_hidden_layers=2,
        sliding_window=7,
        num_local_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
        output_router_logits=False,
        tie_word_embeddings=False,
        rope_theta=1e6,
    ),
    "qwen3_moe": dict(
        model_type="qwen3_moe",
        architectures=["Qwen3MoeForCausalLM"],
        num_hidden_layers=2,
        head_dim=20,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        attention_bias=True,
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=2,
        rope_theta=1e6,
        rope_scaling=None,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=24,
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
    ),
    "gemma2": GEMMA
    | dict(
        model_type="gemma2",
        architectures=["Gemma2ForCausalLM"],
        num_hidden_layers=4,
        sliding_window=6,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=2.0,
        cache_implementation="hybrid",
    ),
    "gemma3": GEMMA
    | dict(
        model_type="gemma3_text",
        architectures=["Gemma3ForCausalLM"],
        num_hidden_layers=7,
        sliding_window=6,
        sliding_window_pattern=6,
        rope_theta=100000.0,
        rope_local_base_freq=500.0,
        rope_scaling=dict(rope_type="linear", factor=8.0),
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        cache_implementation="hybrid",
    ),
    "smollm2": LLAMA
    | dict(
        tie_word_embeddings=True,
        num_attention_heads=6,
        num_key_value_heads=2,
        is_llama_config=True,
        rope_interleaved=False,
        rope_scaling=None,
        rope_theta=100000.0,
        mlp_bias=False,
        attention_bias=False,
    ),
    "smollm3": dict(
        model_type="smollm3",
        architectures=["SmolLM3ForCausalLM"],
        num_hidden_layers=5,
        no_rope_layer_interval=2,
        no_rope_layers=[1, 0, 1, 0, 1],
        tie_word_embeddings=True,
        use_sliding_window=False,
        sliding_window=None,
        rope_theta=5e6,
        rope_scaling=None,
        mlp_bias=False,
        attention_bias=False,
    ),
    "olmo2": dict(
        model_type="olmo2",
        architectures=["Olmo2ForCausalLM"],
        tie_word_embeddings=False,
        rope_theta=500000.0,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        attention_bias=False,
    ),
}


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, valid, positions: no padding id stands at a valid place."""
    ids = np.random.RandomState(7).randint(3, V, (3, T)).astype(np.int32)
    at = np.arange(T)
    valid = np.stack([at < LENGTHS[0], at < LENGTHS[1], at >= T - LENGTHS[2]])
    positions = np.maximum(np.cumsum(valid, 1) - 1, 0).astype(np.int32)
    return np.where(valid, ids, 0).astype(np.int32), valid, positions


def build(hub_config: dict) -> tuple[torch.nn.Module, dict, dict[str, tuple[int, ...]]]:
    """The model with its deterministic weights, its config.json, its tensors' shapes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(hub_config))
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
        config = json.loads(Path(folder, "config.json").read_text())
        with safe_open(f"{folder}/model.safetensors", "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        tensors = weights.state_dict(shapes, config)
        save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
        # Loaded under the published config.json: transformers' own reading of it is the truth.
        Path(folder, "config.json").write_text(json.dumps(hub_config))
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report.values()), report
    loaded = model.state_dict()
    for name, value in tensors.items():
        np.testing.assert_array_equal(tensor_of(name, loaded), value)
    return model.eval(), config, shapes


def mean_nll(logits: torch.Tensor, ids: np.ndarray, valid: np.ndarray) -> torch.Tensor:
    """Mean of -log p(ids[t] | before) over all t with t-1 and t valid."""
    logps = logits.log_softmax(-1)[:, :-1]
    logps = logps.gather(-1, torch.tensor(ids[:, 1:, None], dtype=torch.long))[..., 0]
    return -logps[torch.tensor(valid[:, 1:] & valid[:, :-1])].mean()


def numbers(model: torch.nn.Module, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of a golden file, from one forward and one backward pass."""
    ids, valid, positions = batch()
    routed = {"output_router_logits": True} if hasattr(model.config, "num_local_experts") else {}
    outputs = model(
        input_ids=torch.tensor(ids, dtype=torch.long),
        attention_mask=torch.tensor(valid, dtype=torch.long),
        position_ids=torch.tensor(positions, dtype=torch.long),
        use_cache=False,
        **routed,
    )
    logits = outputs.logits
    nll = mean_nll(logits, ids, valid)
    loss = nll + outputs.aux_loss if routed else nll
    loss.backward()
    held = {name: value.grad for name, value in model.named_parameters()}
    found = dict(
        ids=ids,
        valid=valid,
        positions=positions,
        logits=np.where(valid[..., None], logits.detach().numpy(), 0).astype(np.float32),
        nll=np.float64(nll.item()),
        gradients=np.stack([weights.summary(name, tensor_of(name, held)) for name in shapes]),
    )
    return found | ({"aux": np.float64(outputs.aux_loss.item())} if routed else {})


def tensor_of(name: str, held: dict[str, torch.Tensor]) -> np.ndarray:
    """A tensor of the checkpoint among a model's parameters, which hold a layer's experts fused."""
    name = name.replace(".block_sparse_moe.", ".mlp.")
    if name in held:
        return held[name].numpy()
    block, expert, part = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name).groups()
    if part in ("w2", "down_proj"):
        return held[f"{block}.down_proj"][int(expert)].numpy()
    gate, up = held[f"{block}.gate_up_proj"][int(expert)].chunk(2)
    return (gate if part in ("w1", "gate_proj") else up).numpy()


def main() -> None:
    """Writes one file a family, or those of the families named on the command line."""
    torch.manual_seed(0)
    (weights.FOLDER / "models").mkdir(exist_ok=True)
    for name in sys.argv[1:] or FAMILIES:
        hub_config = BASE | FAMILIES[name]
        model, config, shapes = build(hub_config)
        arrays = numbers(model, shapes)
        np.savez_compressed(
            weights.FOLDER / "models" / f"{name}.npz",
            config_json=json.dumps(config),
            hub_config_json=json.dumps(hub_config),
            shapes_json=json.dumps(shapes),
            **arrays,
        )
        std = arrays["logits"][arrays["valid"]].std()
        norms = arrays["gradients"][:, 1]
        print(f"{name}: nll {arrays['nll']:.4f}, logits' std {std:.2f}, norms {norms.min():.4f}+")


if __name__ == "__main__":
    main()
