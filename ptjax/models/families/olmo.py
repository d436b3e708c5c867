"""OLMo 2 (2501.00656): norms after each block, q and k normalised over all heads together."""

from collections.abc import Mapping
from typing import Any

from ptjax.models.config import ModelConfig, from_hf
from ptjax.models.families import llama
from ptjax.models.spec import Param

_LAYER = "model.layers.{}."
_PRE_NORMS = ("layers.attn_norm", "layers.mlp_norm")

TABLE = {
    **{name: row for name, row in llama.TABLE.items() if name not in _PRE_NORMS},
    "layers.q_norm": Param(
        "layers heads head_dim", _LAYER + "self_attn.q_norm.weight", "(heads head_dim)", "ones"
    ),
    "layers.k_norm": Param(
        "layers kv_heads head_dim",
        _LAYER + "self_attn.k_norm.weight",
        "(kv_heads head_dim)",
        "ones",
    ),
    "layers.post_attn_norm": Param(
        "layers embed", _LAYER + "post_attention_layernorm.weight", init="ones"
    ),
    "layers.post_mlp_norm": Param(
        "layers embed", _LAYER + "post_feedforward_layernorm.weight", init="ones"
    ),
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads an OLMo 2 config."""
    return from_hf(hf, norm="post", qk_norm="full")
