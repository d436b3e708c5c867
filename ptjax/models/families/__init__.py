"""Every family that can be loaded: `model_type` of its Hugging Face config -> config and table."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ptjax.models.config import ModelConfig
from ptjax.models.families import gemma, llama, moe, olmo, qwen, smollm
from ptjax.models.spec import Param


class Family(NamedTuple):
    """How a family reads its config, its table, and the architecture that it is saved as."""

    config: Callable[[Mapping[str, Any]], ModelConfig]
    table: Mapping[str, Param]
    architecture: str

    @property
    def classifier(self) -> str:
        """The architecture that it is saved as with a scalar head."""
        name = self.architecture.removesuffix("ForCausalLM")
        name = {"Gemma3": "Gemma3Text"}.get(name, name)
        return f"{name}ForSequenceClassification"


FAMILIES = {
    "llama": Family(llama.config, llama.TABLE, "LlamaForCausalLM"),
    "mistral": Family(llama.config, llama.TABLE, "MistralForCausalLM"),
    "qwen2": Family(qwen.config2, qwen.TABLE2, "Qwen2ForCausalLM"),
    "qwen3": Family(qwen.config3, qwen.TABLE3, "Qwen3ForCausalLM"),
    "mixtral": Family(moe.mixtral, moe.MIXTRAL, "MixtralForCausalLM"),
    "qwen3_moe": Family(moe.qwen3, moe.QWEN3, "Qwen3MoeForCausalLM"),
    "gemma2": Family(gemma.config2, gemma.TABLE2, "Gemma2ForCausalLM"),
    "gemma3_text": Family(gemma.config3, gemma.TABLE3, "Gemma3ForCausalLM"),
    "smollm3": Family(smollm.config, smollm.TABLE, "SmolLM3ForCausalLM"),
    "olmo2": Family(olmo.config, olmo.TABLE, "Olmo2ForCausalLM"),
}


SCORE = Param("embed -> labels", "score.weight", "labels embed")
"""The scalar head, `*ForSequenceClassification` with one label: alike in every family."""
VALUE = Param("embed -> labels", init="zeros")
"""A value head beside the LM head; no Hugging Face layout has one, so it is never exported."""
CRITIC = "critic."
"""Prefix of a second body's leaves, which ends in a scalar head of its own."""
SCALARS = ("score", "value", f"{CRITIC}score")
"""Leaves of scalar heads: in float32 always, for there are but D of them and in bfloat16 their
small updates would be lost; never under an adapter."""


def table(config: ModelConfig, head: str = "lm") -> dict[str, Param]:
    """The rows that this config has: biases where asked for, and a head.

    Args:
      config: the model's.
      head: `lm` for the output projection, no row where it is tied; `score` for the scalar head in
        its place; `lm_value` for both; `lm_critic` for the projection, and all rows of a model with
        a scalar head once more, as `critic.*`.
    """
    biases = {f"layers.{name}.bias" for name in config.attn_bias}
    if config.mlp_bias:
        biases |= {f"layers.{name}.bias" for name in ("gate", "up", "down")}

    def present(name: str) -> bool:
        if name == "head":
            return head != "score" and not config.tied
        return not name.endswith(".bias") or name in biases

    rows = {k: p for k, p in FAMILIES[config.family].table.items() if present(k)}
    match head:
        case "score":
            rows["score"] = SCORE
        case "lm_value":
            rows["value"] = VALUE
        case "lm_critic":
            rows |= {CRITIC + name: row for name, row in table(config, "score").items()}
    return rows
