"""A model of random weights in the Hugging Face layout: what tests and benchmarks train."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptjax.models.families import FAMILIES
from ptjax.models.load import read_config
from ptjax.models.spec import Param, hf_names, hf_shape
from ptjax.models.weights_out import write_safetensors


def write_random_model(
    folder: Path,
    architecture: Mapping[str, Any],
    tokenizer: Any,
    *,
    seed: int,
    scale: Callable[[Param, tuple[int, ...]], float],
) -> Path:
    """Writes config.json, safetensors and the tokenizer; biases and a tied head are left out.

    Args:
      folder: made where it does not exist.
      architecture: config.json, but for the size of the vocabulary where it is the tokenizer's.
      tokenizer: a transformers tokenizer.
      seed: of the weights.
      scale: standard deviation of a tensor, by its row and its shape.
    """
    raw = {"vocab_size": len(tokenizer), **architecture}
    config = read_config(raw, str(folder))
    state = np.random.RandomState(seed)
    tensors = {}
    for name, param in FAMILIES[raw["model_type"]].table.items():
        if name == "head" and config.tied or name.endswith(".bias"):
            continue
        for hf, _ in hf_names(name, param, config.dims):
            shape = hf_shape(param, config.dims)
            center = 1.0 if param.init == "ones" else 0.0
            drawn = scale(param, shape) * state.standard_normal(shape)
            tensors[hf] = np.float32(center + drawn)
    write_safetensors(tensors.items(), folder)
    (folder / "config.json").write_text(json.dumps(raw, indent=1))
    tokenizer.save_pretrained(str(folder))
    return folder
