"""Llama 2 and 3.x, SmolLM 2, Mistral: pre-norm, SwiGLU, grouped heads, rotary positions."""

from collections.abc import Mapping
from typing import Any

from ptjax.models.config import ModelConfig, from_hf
from ptjax.models.spec import Param

_LAYER = "model.layers.{}."
_ATTN = _LAYER + "self_attn."
_MLP = _LAYER + "mlp."

TABLE = {
    "embed": Param("vocab embed", "model.embed_tokens.weight", init="embed"),
    "layers.attn_norm": Param("layers embed", _LAYER + "input_layernorm.weight", init="ones"),
    "layers.q": Param(
        "layers embed -> heads head_dim", _ATTN + "q_proj.weight", "(heads head_dim) embed"
    ),
    "layers.k": Param(
        "layers embed -> kv_heads head_dim", _ATTN + "k_proj.weight", "(kv_heads head_dim) embed"
    ),
    "layers.v": Param(
        "layers embed -> kv_heads head_dim", _ATTN + "v_proj.weight", "(kv_heads head_dim) embed"
    ),
    "layers.o": Param(
        "layers heads head_dim -> embed", _ATTN + "o_proj.weight", "embed (heads head_dim)"
    ),
    "layers.q.bias": Param(
        "layers heads head_dim", _ATTN + "q_proj.bias", "(heads head_dim)", init="zeros"
    ),
    "layers.k.bias": Param(
        "layers kv_heads head_dim", _ATTN + "k_proj.bias", "(kv_heads head_dim)", init="zeros"
    ),
    "layers.v.bias": Param(
        "layers kv_heads head_dim", _ATTN + "v_proj.bias", "(kv_heads head_dim)", init="zeros"
    ),
    "layers.o.bias": Param("layers embed", _ATTN + "o_proj.bias", init="zeros"),
    "layers.mlp_norm": Param(
        "layers embed", _LAYER + "post_attention_layernorm.weight", init="ones"
    ),
    "layers.gate": Param("layers embed -> mlp", _MLP + "gate_proj.weight", "mlp embed"),
    "layers.up": Param("layers embed -> mlp", _MLP + "up_proj.weight", "mlp embed"),
    "layers.down": Param("layers mlp -> embed", _MLP + "down_proj.weight", "embed mlp"),
    "layers.gate.bias": Param("layers mlp", _MLP + "gate_proj.bias", init="zeros"),
    "layers.up.bias": Param("layers mlp", _MLP + "up_proj.bias", init="zeros"),
    "layers.down.bias": Param("layers embed", _MLP + "down_proj.bias", init="zeros"),
    "norm": Param("embed", "model.norm.weight", init="ones"),
    "head": Param("embed -> vocab", "lm_head.weight", "vocab embed"),
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads a Llama or Mistral config; Mistral's sliding window is on every layer."""
    return from_hf(hf)
