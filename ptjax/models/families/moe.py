"""Mixtures of experts: Mixtral (2401.04088) and Qwen3-MoE (2505.09388)."""

from collections.abc import Mapping
from typing import Any

from ptjax.errors import UserError
from ptjax.models.config import ModelConfig, from_hf
from ptjax.models.families import llama, qwen
from ptjax.models.spec import Param, Table


def _sparse(rows: Table, block: str, gate: str, up: str, down: str) -> dict[str, Param]:
    """Rows with a router and experts in the place of the MLP.

    Args:
      rows: of the model with an MLP.
      block: the Hugging Face name of what takes its place in a layer.
      gate: that of an expert's kernel.
      up: that of another.
      down: that of the last.
    """
    prefix = f"model.layers.{{}}.{block}."
    expert = prefix + "experts.{}."
    into, out = "layers experts expert_embed -> mlp", "layers experts mlp -> expert_embed"
    made: dict[str, Param] = {}
    for name, row in rows.items():
        if name == "layers.gate":
            made["layers.router"] = Param(
                "layers embed -> routes", prefix + "gate.weight", "routes embed"
            )
            made["layers.experts.gate"] = Param(into, f"{expert}{gate}.weight", "mlp expert_embed")
            made["layers.experts.up"] = Param(into, f"{expert}{up}.weight", "mlp expert_embed")
            made["layers.experts.down"] = Param(out, f"{expert}{down}.weight", "expert_embed mlp")
        if not name.startswith(("layers.gate", "layers.up", "layers.down")):
            made[name] = row
    return made


MIXTRAL = _sparse(llama.TABLE, "block_sparse_moe", "w1", "w3", "w2")
QWEN3 = _sparse(qwen.TABLE3, "mlp", "gate_proj", "up_proj", "down_proj")


def _config(hf: Mapping[str, Any], **features: Any) -> ModelConfig:
    config = from_hf(
        hf,
        experts=hf["num_local_experts"] if "num_local_experts" in hf else hf["num_experts"],
        top_k=hf["num_experts_per_tok"],
        router_aux_loss_coef=float(hf["router_aux_loss_coef"]),
        **features,
    )
    if not 1 <= config.top_k <= config.experts:
        raise UserError(f"model config: {config.top_k} of {config.experts} experts for each token")
    return config


def mixtral(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads a Mixtral config: the weights of a token's experts always add up to 1."""
    if hf.get("router_jitter_noise"):
        raise UserError(
            "model config: router_jitter_noise is not supported; set it to 0 in config.json"
        )
    return _config(hf)


def qwen3(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads a Qwen3-MoE config; every layer must have experts."""
    if hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1:
        raise UserError(
            "model config: layers without experts (mlp_only_layers, decoder_sparse_step) among "
            "those with are not supported"
        )
    return _config(
        hf,
        qk_norm="head",
        mlp=hf["moe_intermediate_size"],
        norm_topk=bool(hf["norm_topk_prob"]),
    )
