"""Architectures by name: what a plan needs of a model, without its weights or its tokenizer.

Numbers are those of the public config.json of each; the sizes in the tests are those of the public
weights.
"""

import re
from pathlib import Path
from typing import Any

from ptjax.errors import UserError, did_you_mean
from ptjax.models.config import ModelConfig
from ptjax.models.gguf import gguf_config
from ptjax.models.hub import resolve_source
from ptjax.models.language_part import COMPOSITES, language_config
from ptjax.models.load import read_config, read_json

Raw = dict[str, Any]

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def _sized(common: Raw, *sizes: int, **more: Any) -> Raw:
    return common | dict(zip(_SIZES, sizes, strict=True)) | more


_LLAMA31: Raw = {
    "model_type": "llama",
    "vocab_size": 128256,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
_QWEN25: Raw = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
_QWEN3: Raw = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
_QWEN3_MOE: Raw = _QWEN3 | {
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.001,
    "tie_word_embeddings": False,
}
_GEMMA3: Raw = {
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
_MIXTRAL: Raw = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
    "tie_word_embeddings": False,
}
_SMOLLM2: Raw = {
    "model_type": "llama",
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}

ARCHITECTURES: dict[str, Raw] = {
    "llama3.1-8b": _sized(_LLAMA31, 4096, 14336, 32, 32, 8),
    "llama3.1-70b": _sized(_LLAMA31, 8192, 28672, 80, 64, 8),
    "qwen2.5-0.5b": _sized(_QWEN25, 896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": _sized(_QWEN25, 1536, 8960, 28, 12, 2),
    "qwen2.5-3b": _sized(_QWEN25, 2048, 11008, 36, 16, 2),
    "qwen3-0.6b": _sized(_QWEN3, 1024, 3072, 28, 16, 8),
    "qwen3-1.7b": _sized(_QWEN3, 2048, 6144, 28, 16, 8),
    "qwen3-30b-a3b": _sized(_QWEN3_MOE, 2048, 6144, 48, 32, 4, moe_intermediate_size=768),
    "mixtral-8x7b": _sized(_MIXTRAL, 4096, 14336, 32, 32, 8),
    "gemma3-1b": _sized(_GEMMA3, 1152, 6912, 26, 4, 1),
    "smollm2-135m": _sized(_SMOLLM2, 576, 1536, 30, 9, 3, head_dim=64),
}
"""Name -> config.json, as far as shapes and programs depend on it."""

_VARIANT = re.compile(r"-(instruct|it|base|pt)$")


def registered(source: str) -> str | None:
    """The architecture that a source names, None where it is none of them.

    A hub id counts with its owner left out, and so does a variant that is trained further:
    `meta-llama/Llama-3.1-8B-Instruct` is `llama3.1-8b`.
    """
    key = _key(_VARIANT.sub("", source.removeprefix("hf:").rpartition("/")[2].lower()))
    return {_key(name): name for name in ARCHITECTURES}.get(key)


def _key(name: str) -> str:
    return re.sub(r"[-_]", "", name)


def architecture(source: str) -> ModelConfig:
    """A model's config: of a registered name, of a hub id that is one, of a folder or a GGUF file.

    Nothing is downloaded, and of a folder its config.json alone is read, of a run's workdir that of
    the model in it.

    Raises:
      UserError: none of these, or an architecture that no family implements.
    """
    folder = Path(source)
    if not folder.exists():
        name = registered(source)
        if name is None:
            raise UserError(
                f"config.model.source = {source!r}: a plan downloads nothing; give a folder with "
                f"its config.json, or an architecture by name{did_you_mean(source, ARCHITECTURES)}"
            )
        return read_config(ARCHITECTURES[name], name)
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    path = resolve_source(folder)
    if path.is_file():
        return read_config(gguf_config(path), source)
    raw = read_json(path / "config.json")
    if raw.get("model_type") in COMPOSITES:
        raw = language_config(raw, str(path))
    return read_config(raw, str(path))
