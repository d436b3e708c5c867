"""PEFT adapter folders: adapter_config.json and adapter_model.safetensors, read and described.

PEFT keeps, for every adapted linear layer, `lora_A` [r, in], `lora_B` [out, r] and for DoRA
`lora_magnitude_vector` [out]; leaves that are trained whole
stand beside them under their own names.
"""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ptjax.errors import UserError
from ptjax.models import lora as lora_module
from ptjax.models.convert import from_hf
from ptjax.models.lora import ALL_LINEAR, Lora
from ptjax.models.spec import Dims, Param, Table, hf_names
from ptjax.models.weights import TensorSource, Without, open_safetensors
from ptjax.types import Params

STEM = "adapter_model"
_PREFIX = "base_model.model."
TIED_HEAD = _PREFIX + "lm_head.weight"
# Settings of PEFT's that change what an adapter computes, and their neutral values.
_NEUTRAL = {
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


def rows(table: Table, lora: Lora, saved: Collection[str] = ()) -> dict[str, Param]:
    """The rows of an adapter folder: our leaves under PEFT's names and layouts.

    Args:
      table: the model's rows.
      lora: the adapter's settings.
      saved: leaves of the model that the folder holds whole (PEFT's `modules_to_save`).
    """
    found = {}
    for name, param in lora_module.rows(table, lora).items():
        kernel, _, part = name.rpartition(".")
        outputs, inputs = re.findall(r"\([^)]*\)|\S+", table[kernel].layout)
        hf = _PREFIX + table[kernel].hf.removesuffix(".weight")
        suffix, layout = {
            "lora_a": (".lora_A.weight", f"rank {inputs}"),
            "lora_b": (".lora_B.weight", f"{outputs} rank"),
            "dora_m": (".lora_magnitude_vector", outputs),
        }[part]
        found[name] = param._replace(hf=hf + suffix, layout=layout)
    for name in saved:
        found[name] = table[name]._replace(hf=_PREFIX + table[name].hf)
    return found


def adapter_config(
    table: Table, lora: Lora, *, base: str, saved: Sequence[str] = ()
) -> dict[str, Any]:
    """The contents of adapter_config.json.

    Args:
      table: the model's rows.
      lora: the adapter's settings.
      base: the model that the adapter belongs to: a hub id or a folder.
      saved: leaves of the model that the folder holds whole.

    Raises:
      UserError: one of `saved` is part of a linear layer, where PEFT has no place for it.
    """
    adapted = [n.removesuffix(".lora_a") for n in lora_module.rows(table, lora) if "lora_a" in n]
    if experts := [name for name in adapted if "experts" in table[name].stack]:
        raise UserError(
            f"{experts[0]} has adapters, an expert each, and an adapter folder has no place for "
            "them: peft adapts experts fused; export the merged model instead"
        )
    for name in saved:
        inside = table[name].is_kernel and name not in ("head", "score")
        if name.endswith(".bias") or inside or name in adapted:
            raise UserError(
                f"{name} was trained beside the adapter, and an adapter folder cannot hold it; "
                "export the merged model instead"
            )
    # PEFT looks for names that end so, dot or no dot: "norm" would be every norm of the model.
    modules = [
        _module(table[name]) if table[name].stacked else table[name].hf.rpartition(".")[0]
        for name in saved
    ]
    if "embed" in saved and not {"head", "score"} & set(table):
        modules.append("lm_head")
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if "score" in table else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(_module(table[name]) for name in adapted),
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": modules or None,
    }


def _module(param: Param) -> str:
    """The last part of a module's name, by which PEFT finds it in every layer."""
    return param.hf.rpartition(".")[0].rpartition(".")[2]


def read_adapter(
    folder: str | os.PathLike[str], table: Table, dims: Dims, mesh: Mesh | None = None
) -> tuple[Lora, Params]:
    """Reads a PEFT adapter folder for a model, to go on training it or to merge it.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors.
      table: the model's rows.
      dims: sizes of the model's logical axes.
      mesh: where the leaves go; None for the first device.

    Returns:
      The adapter's settings, its dropout included, and its leaves in float32; the model's own
      leaves among them (`modules_to_save`) replace those of the base.

    Raises:
      UserError: no adapter there, of another kind or another model, or one whose rank, scale or
        targets differ from layer to layer.
    """
    folder = Path(folder)
    config = _read_config(folder)
    source = open_safetensors(folder, stem=STEM)
    names = set(source.specs())
    kernels = {
        name: param
        for name, param in table.items()
        if param.is_kernel and param.stack and _some(name, param, names, dims)
    }
    if not kernels:
        raise UserError(f"{source.origin}: it adapts no layer of this model")
    lora = Lora(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        targets=_regex(kernels),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )
    saved = [
        name
        for name, param in table.items()
        if names & {_PREFIX + hf for hf, _ in hf_names(name, param, dims)}
    ]
    if "head" not in table and TIED_HEAD in names:
        source = _untied(source, _PREFIX + table["embed"].hf)
    adapter = rows(table, lora, saved)
    return lora, from_hf(adapter, {**dims, "rank": lora.rank}, source, mesh=mesh)


def _some(name: str, param: Param, names: Collection[str], dims: Dims) -> bool:
    """Whether a folder adapts a kernel in any layer."""
    modules = [_PREFIX + hf.removesuffix(".weight") for hf, _ in hf_names(name, param, dims)]
    return any(f"{module}.lora_{part}.weight" in names for module in modules for part in "AB")


def _regex(kernels: Collection[str]) -> str:
    if len(kernels) == 7 and all(re.fullmatch(ALL_LINEAR, name) for name in kernels):
        return ALL_LINEAR
    return "|".join(re.escape(name) for name in kernels)


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no adapter_config.json; is this an adapter's folder?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UserError(f"{path}: peft_type is {kind!r}; only LORA adapters can be read")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{path}: r is {rank!r} and lora_alpha is {alpha!r}: they must be numbers")
    for key, neutral in _NEUTRAL.items():
        value = config.get(key, neutral[0])
        if value not in neutral:
            raise UserError(
                f"{path}: {key} is {value!r}, which is not supported; merge the adapter into its "
                "base with PEFT, and start from the merged model"
            )
    return config


def _untied(source: TensorSource, embed: str) -> TensorSource:
    """Leaves out a saved head that is the saved embeddings again, as tied models have it."""
    if embed not in source.specs() or not np.array_equal(
        source.read(TIED_HEAD), source.read(embed)
    ):
        raise UserError(
            f"{source.origin}: it holds an lm_head of its own, but the model ties its head to the "
            "embeddings"
        )
    return Without(source, TIED_HEAD, source.origin)
