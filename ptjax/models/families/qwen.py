"""Qwen 2 and 2.5 (biases on q, k, v) and Qwen 3 (q and k normalised a head)."""

from collections.abc import Mapping
from typing import Any

from ptjax.models.config import ModelConfig, from_hf
from ptjax.models.families import llama
from ptjax.models.spec import Param

TABLE2 = llama.TABLE
TABLE3 = {
    **llama.TABLE,
    "layers.q_norm": Param(
        "layers head_dim", "model.layers.{}.self_attn.q_norm.weight", init="ones"
    ),
    "layers.k_norm": Param(
        "layers head_dim", "model.layers.{}.self_attn.k_norm.weight", init="ones"
    ),
}


def config2(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads a Qwen 2 config: q, k and v always have a bias, o never."""
    return from_hf(hf, attn_bias=("q", "k", "v"))


def config3(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads a Qwen 3 config."""
    return from_hf(hf, qk_norm="head")
