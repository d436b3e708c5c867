"""`load(source)`: a pretrained model, its tokenizer and its configs, from wherever they lie."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ptjax import sharding
from ptjax.errors import UserError, did_you_mean
from ptjax.models.config import ModelConfig
from ptjax.models.convert import from_hf
from ptjax.models.decoder import Decoder
from ptjax.models.families import FAMILIES
from ptjax.models.gguf import gguf_config, open_gguf
from ptjax.models.hub import resolve_source
from ptjax.models.quiet import auto_config_class
from ptjax.models.tokenizer import add_special_tokens, load_tokenizer
from ptjax.models.weights import TensorSource, open_safetensors
from ptjax.types import Params


@dataclass
class Bundle:
    """A model that is ready to train, sample from or export.

    Attributes:
      model: its static side.
      params: all leaves, by name.
      tokenizer: a transformers fast tokenizer.
      hf_config: the contents of config.json.
      generation_config: the contents of generation_config.json, empty where there is none.
      dtypes: how each Hugging Face tensor was stored.
      source: where it came from, for messages.
    """

    model: Decoder
    params: Params
    tokenizer: Any
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    dtypes: dict[str, np.dtype]
    source: str

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation: the generation config's, else the tokenizer's end token."""
        stops = self.generation_config.get("eos_token_id", self.tokenizer.eos_token_id)
        stops = stops if isinstance(stops, list) else [stops]
        return tuple(stop for stop in {*stops, self.tokenizer.eos_token_id} if stop is not None)


def load(
    source: str,
    *,
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
    chat_template: str | None = None,
    special_tokens: Sequence[str] = (),
) -> Bundle:
    """Loads a pretrained model; weights stream tensor by tensor into their sharding.

    Args:
      source: a registered name, a local folder, a .gguf file, a hub id, or `flax:my_file.build` for
        a module of the user's own (see `ptjax.models.flax_adapter`).
      param_dtype: of the parameters, `float32` or `bfloat16`; the compute dtype is another matter.
      mesh: where the parameters go, by the rules of `ptjax.sharding`; None for the first device.
      chat_template: replaces the source's; Jinja text or a path.
      special_tokens: new control tokens; the embeddings grow, new rows are the mean of the old.

    Raises:
      UserError: nothing there, an unknown architecture, a damaged or mismatched file.
    """
    if param_dtype not in ("float32", "bfloat16"):
        raise UserError(f"param_dtype {param_dtype!r} is neither float32 nor bfloat16")
    if source.startswith("flax:"):
        from ptjax.models.flax_adapter import load_flax

        if special_tokens:
            raise UserError("model.special_tokens: a flax module's embeddings cannot grow")
        return load_flax(
            source[5:], param_dtype=param_dtype, mesh=mesh, chat_template=chat_template
        )
    path = resolve_source(source)
    raw, generation, tensors = _open(path)
    config = read_config(raw, str(path))
    tokenizer = load_tokenizer(path, chat_template=chat_template)
    model = Decoder(config)
    params = from_hf(model.table, config.dims, tensors, dtype=param_dtype, mesh=mesh)
    dtypes = {name: spec.dtype for name, spec in tensors.specs().items()}
    bundle = Bundle(model, params, tokenizer, raw, generation, dtypes, source)
    if special_tokens:
        add_special_tokens(tokenizer, list(special_tokens))
        if len(tokenizer) > config.vocab:
            bundle = resize_vocab(bundle, len(tokenizer), mesh)
    return bundle


def resize_vocab(bundle: Bundle, vocab: int, mesh: Mesh | None = None) -> Bundle:
    """The same model with more rows in embeddings and head, each the mean of those there are."""
    config = bundle.model.config
    params = dict(bundle.params)
    for name in ("embed", "head"):
        if name not in params:
            continue
        axes = bundle.model.table[name].names
        axis = axes.index("vocab")
        grown = _grow(params[name], vocab, axis)
        mesh_ = sharding.make_mesh({}, list(grown.devices())[:1]) if mesh is None else mesh
        params[name] = jnp.asarray(grown, device=sharding.named(axes, grown.shape, mesh_))
    model = replace(bundle.model, config=config.with_vocab(vocab))
    hf_config = {**bundle.hf_config, "vocab_size": vocab}
    return replace(bundle, model=model, params=params, hf_config=hf_config)


def _grow(leaf: Array, vocab: int, axis: int) -> Array:
    mean = jnp.mean(leaf.astype(jnp.float32), axis=axis, keepdims=True).astype(leaf.dtype)
    rows = jnp.repeat(mean, vocab - leaf.shape[axis], axis=axis)
    return jnp.concatenate([leaf, rows], axis=axis)


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Any], TensorSource]:
    """config.json, generation_config.json and the tensors of a folder or a GGUF file."""
    if path.is_file():
        raw = gguf_config(path)
        return raw, {}, open_gguf(path, raw)
    raw = _json(path / "config.json")
    generation = path / "generation_config.json"
    return raw, _json(generation) if generation.exists() else {}, open_safetensors(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name}; is this a model's folder?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, not an object")
    return found


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
        raise UserError(
            f"{origin}: quantised checkpoints are not supported; use the original weights"
        )
    try:
        return FAMILIES[kind].config(normalise(raw))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{origin}: config.json is not a valid {kind} config: {error!r}") from error


def normalise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the keys that `transformers` writes today.

    Raises:
      ValueError: a value of the wrong type.
    """
    from huggingface_hub.errors import StrictDataclassError

    logging.getLogger("transformers").setLevel(logging.ERROR)
    kept = {k: v for k, v in raw.items() if k not in ("model_type", "transformers_version")}
    try:
        return auto_config_class().for_model(raw["model_type"], **kept).to_dict()
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error
