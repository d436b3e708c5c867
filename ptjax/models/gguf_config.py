"""A GGUF file's metadata as a Hugging Face config.json."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptjax.errors import UserError, did_you_mean
from ptjax.models.gguf_file import GGUFFile, read_gguf, read_tensor

# GGUF architecture -> (model_type, architectures)
FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM"),
}


@dataclass(frozen=True)
class _Entries:
    """The metadata of one architecture, each entry read as the type it must have."""

    file: GGUFFile
    arch: str

    def integer(self, key: str, default: int | None = None) -> int | None:
        return self._typed(key, int, default)

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self._typed(key, (int, float), default)
        return None if value is None else float(value)

    def need(self, key: str) -> int:
        value = self.integer(key)
        if not value or value < 0:
            raise UserError(f"{self.file.path}: '{self.arch}.{key}' is {value} in its metadata")
        return value

    def _typed(self, key: str, kind: Any, default: Any) -> Any:
        value = self.file.metadata.get(f"{self.arch}.{key}", default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise UserError(f"{self.file.path}: '{self.arch}.{key}' has a wrong type")
        return value


def architecture_of(file: GGUFFile) -> str:
    """The file's architecture.

    Raises:
      UserError: where it is none of `FAMILIES`.
    """
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in FAMILIES:
        hint = did_you_mean(str(arch), FAMILIES)
        raise UserError(f"{file.path}: architecture {arch!r} is not supported{hint}")
    return arch


def gguf_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A Hugging Face config.json for a GGUF file, made from its metadata.

    Rope settings are there in both spellings: `rope_parameters`, and `rope_theta` with
    `rope_scaling`.

    Args:
      path: a .gguf file.

    Raises:
      UserError: for a damaged file, an unknown architecture or a missing entry.
    """
    file = read_gguf(path)
    entries = _Entries(file, architecture_of(file))
    model_type, architecture = FAMILIES[entries.arch]
    if entries.arch == "llama" and entries.integer("expert_count"):
        model_type, architecture = "mixtral", "MixtralForCausalLM"
    elif entries.arch == "llama" and _is_mistral(file.metadata):
        model_type, architecture = "mistral", "MistralForCausalLM"
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{path}: it has no matrix 'token_embd.weight' (a vocabulary only?)")
    width, heads = entries.need("embedding_length"), entries.need("attention.head_count")
    head_dim = entries.integer("attention.key_length") or entries.integer("rope.dimension_count")
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": entries.need("feed_forward_length"),
        "num_hidden_layers": entries.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entries.integer("attention.head_count_kv") or heads,
        "head_dim": head_dim or width // heads,
        "max_position_embeddings": entries.need("context_length"),
        "rms_norm_eps": entries.number("attention.layer_norm_rms_epsilon", 1e-6),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
    }
    for theirs, ours in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        config[f"{ours}_token_id"] = file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
    if entries.arch != "qwen2":  # always biased: its config has no word for it
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    gemma = entries.arch in ("gemma2", "gemma3")
    config |= _gemma(entries, config) if gemma else _llama_like(entries, config)
    return config | _rope(entries, config)


def _is_mistral(metadata: dict[str, Any]) -> bool:
    names = (str(metadata.get(f"general.{key}")).lower() for key in ("name", "basename"))
    return "llama.attention.sliding_window" in metadata or any("mistral" in n for n in names)


def _gemma(entries: _Entries, config: dict[str, Any]) -> dict[str, Any]:
    """Gemma's own settings; the defaults are those of llama.cpp's `load_hparams` for these two.

    Gemma 2: window 4096, every second layer without it, caps 50 and 30. Gemma 3: no window where
    the file has none, else every sixth layer without it; no cap on the scores.
    """
    second = entries.arch == "gemma2"
    layers = config["num_hidden_layers"]
    window = entries.integer("attention.sliding_window", 4096 if second else None)
    every = entries.integer("attention.sliding_window_pattern", 2 if second else 6) or 1
    # The two 27B models, known by their depth, scale queries by hidden_size / heads.
    large = layers == (46 if second else 62)
    per_head = config["hidden_size"] // config["num_attention_heads"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": window,
        "layer_types": [
            "sliding_attention" if window and i % every else "full_attention"
            for i in range(1, layers + 1)
        ],
        "query_pre_attn_scalar": per_head if large else config["head_dim"],
        "attn_logit_softcapping": entries.number(
            "attn_logit_softcapping", 50.0 if second else None
        ),
        "final_logit_softcapping": entries.number(
            "final_logit_softcapping", 30.0 if second else None
        ),
    }


def _llama_like(entries: _Entries, config: dict[str, Any]) -> dict[str, Any]:
    """What the families without Gemma's additions have beside the common settings."""
    arch, layers = entries.arch, config["num_hidden_layers"]
    window = entries.integer("attention.sliding_window")
    settings: dict[str, Any] = {"hidden_act": "silu"}
    if arch == "olmo2" and window:
        raise UserError(f"{entries.file.path}: OLMo 3 (sliding window) is not supported")
    if config["model_type"] == "mistral":
        settings["sliding_window"] = window
    if arch in ("llama", "smollm3"):
        settings["mlp_bias"] = "blk.0.ffn_up.bias" in entries.file.tensors
    if config["model_type"] == "mixtral":
        settings |= {
            "num_local_experts": entries.need("expert_count"),
            "num_experts_per_tok": entries.need("expert_used_count"),
        }
    if arch == "qwen3moe":  # llama.cpp makes the weights of a token's experts add up to 1
        settings |= {
            "num_experts": entries.need("expert_count"),
            "num_experts_per_tok": entries.need("expert_used_count"),
            "moe_intermediate_size": entries.need("expert_feed_forward_length"),
            "norm_topk_prob": True,
        }
    if arch in ("qwen2", "qwen3", "qwen3moe", "smollm3"):
        settings |= {"use_sliding_window": False, "sliding_window": None}
    if arch == "smollm3":
        settings["no_rope_layer_interval"] = 4
        settings["no_rope_layers"] = [int(i % 4 != 0) for i in range(1, layers + 1)]
    return settings


def _rope(entries: _Entries, config: dict[str, Any]) -> dict[str, Any]:
    """Rope settings in the new spelling and the old."""
    file = entries.file
    theta = entries.number("rope.freq_base", 10000.0) or 10000.0
    original = entries.integer("rope.scaling.original_context_length")
    kind = file.metadata.get(f"{entries.arch}.rope.scaling.type", "none")
    scaling: dict[str, Any] = {"rope_type": "default"}
    if "rope_freqs.weight" in file.tensors:
        scaling = _llama3_scaling(file, theta, config["head_dim"], original or 8192)
    elif kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": entries.number("rope.scaling.factor", 1.0)}
        if original:
            scaling["original_max_position_embeddings"] = original
    elif kind != "none":
        raise UserError(f"{file.path}: rope scaling {kind!r} is not supported")
    parameters: dict[str, Any] = {"rope_theta": theta, **scaling}
    old: dict[str, Any] = {"rope_theta": theta}
    if scaling["rope_type"] != "default":
        old["rope_scaling"] = scaling
    if entries.arch == "gemma3":
        local = entries.number("rope.freq_base_swa", 10000.0)
        old["rope_local_base_freq"] = local
        parameters = {
            "full_attention": parameters,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    return {**old, "rope_parameters": parameters}


def _llama3_scaling(file: GGUFFile, theta: float, head_dim: int, original: int) -> dict[str, Any]:
    """The settings behind llama.cpp's tensor of frequency divisors, checked against it.

    A frequency of wavelength w is divided by 1 / ((1 - s) / factor + s), where
    s = clip((original / w - low) / (high - low), 0, 1) (Llama 3.1's released code).
    """
    divisors = read_tensor(file, "rope_freqs.weight").reshape(-1)
    factor, low, high = float(divisors.max(initial=1.0)), 1.0, 4.0
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if expected.shape != divisors.shape or not np.allclose(expected, divisors, rtol=1e-3):
        raise UserError(f"{file.path}: rope_freqs.weight does not follow Llama 3's rope scaling")
    return {
        "rope_type": "llama3",
        "factor": round(factor, 3),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
