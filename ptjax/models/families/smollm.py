"""SmolLM 3: Llama with layers that have no positions (NoPE, 2501.18795)."""

from collections.abc import Mapping
from typing import Any

from ptjax.models.config import ModelConfig, from_hf
from ptjax.models.families import llama

TABLE = llama.TABLE


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads a SmolLM 3 config; `no_rope_layers` holds 1 where a layer does rotate."""
    return from_hf(hf, rope_kind=tuple(0 if rotates else -1 for rotates in hf["no_rope_layers"]))
