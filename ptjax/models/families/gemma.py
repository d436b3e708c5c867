"""Gemma 2 (soft caps) and Gemma 3 text (q/k norms, two rotary bases): norms before and after."""

from collections.abc import Mapping
from typing import Any

from ptjax.errors import UserError
from ptjax.models.config import ModelConfig, from_hf
from ptjax.models.families import llama, qwen
from ptjax.models.spec import Param

_LAYER = "model.layers.{}."


def _sandwich(rows: Mapping[str, Param]) -> dict[str, Param]:
    """Rows with a norm on each side of a block, stored as distance from one."""
    norms = {
        "layers.post_attn_norm": Param("layers embed", _LAYER + "post_attention_layernorm.weight"),
        "layers.mlp_norm": Param("layers embed", _LAYER + "pre_feedforward_layernorm.weight"),
        "layers.post_mlp_norm": Param("layers embed", _LAYER + "post_feedforward_layernorm.weight"),
    }
    rows = {**rows, **norms}
    return {k: p._replace(init="zeros") if k.endswith("norm") else p for k, p in rows.items()}


TABLE2 = _sandwich(llama.TABLE)
TABLE3 = _sandwich(qwen.TABLE3)


def _config(hf: Mapping[str, Any], **features: Any) -> ModelConfig:
    if hf.get("use_bidirectional_attention"):
        raise UserError("model config: use_bidirectional_attention is not supported")
    return from_hf(
        hf,
        norm="sandwich",
        norm_offset=1.0,
        attn_scale=hf["query_pre_attn_scalar"] ** -0.5,
        embed_scale=hf["hidden_size"] ** 0.5,
        attn_softcap=hf.get("attn_logit_softcapping"),
        logit_softcap=hf.get("final_logit_softcapping"),
        **features,
    )


def config2(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads a Gemma 2 config."""
    return _config(hf)


def config3(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads a Gemma 3 text config: local and global layers have rotary bases of their own."""
    return _config(hf, qk_norm="head")
