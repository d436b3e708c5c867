"""Writes everything of the Hugging Face layout but the weights."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptjax.errors import UserError
from ptjax.models.families import FAMILIES
from ptjax.models.load import Bundle
from ptjax.models.tokenizer import save_tokenizer


def write_configs(
    bundle: Bundle, folder: str | os.PathLike[str], *, dtype: str | None = None
) -> None:
    """Writes config.json, generation_config.json and the tokenizer with its chat template.

    Args:
      bundle: the model.
      folder: a local folder; made where it does not exist.
      dtype: of the weights, where it is not the one they were imported with.

    Raises:
      UserError: where it cannot be written.
    """
    folder = Path(folder)
    config = dict(bundle.hf_config)
    if "architectures" not in config:
        config["architectures"] = [FAMILIES[config["model_type"]].architecture]
    config["vocab_size"] = bundle.model.config.vocab
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    write_json(folder / "config.json", config)
    generation = bundle.generation_config or _generation_config(bundle)
    write_json(folder / "generation_config.json", generation)
    save_tokenizer(bundle.tokenizer, folder)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as `transformers` does, its keys in their own order.

    Raises:
      UserError: where it cannot be written.
    """
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _generation_config(bundle: Bundle) -> dict[str, Any]:
    """What `transformers` derives for a model that came without one, with our stop tokens."""
    stops = sorted(bundle.stop_ids)
    found = {
        "_from_model_config": True,
        "bos_token_id": bundle.tokenizer.bos_token_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": bundle.tokenizer.pad_token_id,
    }
    return {key: value for key, value in found.items() if value not in (None, [])}
