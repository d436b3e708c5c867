"""`load(source)`: a pretrained model, its tokenizer and its configs, from wherever they lie."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from ptjax.errors import UserError, did_you_mean
from ptjax.models.config import ModelConfig
from ptjax.models.families import FAMILIES


def read_config(raw: Mapping[str, Any], origin: str) -> ModelConfig:
    """The model's config from the contents of a config.json, old style or new.

    Raises:
      UserError: an architecture that no family here implements, or a feature that is not.
    """
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        hint = did_you_mean(str(kind), FAMILIES)
        raise UserError(f"{origin}: model_type {kind!r} is not supported{hint}")
    if raw.get("quantization_config"):
        raise UserError(f"{origin}: quantised checkpoints are not supported; use the original weights")
    try:
        return FAMILIES[kind].config(normalise(raw))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{origin}: config.json is not a valid {kind} config: {error!r}") from error


def normalise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the keys that `transformers` writes today."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoConfig

    logging.getLogger("transformers").setLevel(logging.ERROR)
    kept = {k: v for k, v in raw.items() if k not in ("model_type", "transformers_version")}
    return AutoConfig.for_model(raw["model_type"], **kept).to_dict()
