"""`load(source)`: a pretrained model, its tokenizer and its configs, from wherever they lie."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ptjax.errors import UserError, did_you_mean
from ptjax.json_errors import in_words
from ptjax.models.bundle import Bundle, check_head, with_head, with_tokens
from ptjax.models.config import ModelConfig
from ptjax.models.convert import from_hf
from ptjax.models.decoder import Decoder
from ptjax.models.families import FAMILIES, SCORE
from ptjax.models.gguf import gguf_config, open_gguf
from ptjax.models.hub import resolve_source
from ptjax.models.language_part import COMPOSITES, language_config, language_tensors
from ptjax.models.layers import ACTIVATIONS
from ptjax.models.quantised import check_base
from ptjax.models.quiet import auto_config_class
from ptjax.models.tokenizer import load_tokenizer
from ptjax.models.weights import TensorSource, Without, open_safetensors

__all__ = ["Bundle", "load", "normalise", "read_config"]


def load(
    source: str,
    *,
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
    chat_template: str | None = None,
    special_tokens: Sequence[str] = (),
    head: str | None = None,
    seed: int = 0,
    critic: Bundle | None = None,
    base: str = "none",
    offload: bool = False,
) -> Bundle:
    """Loads a pretrained model; weights stream tensor by tensor into their sharding.

    Of a checkpoint of more than text (`gemma3`) the language part alone is read.

    Args:
      source: a registered name, a local folder, a .gguf file, a hub id, or `flax:my_file.build` for
        a module of the user's own (see `ptjax.models.flax_adapter`).
      param_dtype: of the parameters, `float32` or `bfloat16`; the compute dtype is another matter.
      mesh: where the parameters go, by the rules of `ptjax.sharding`; None for the first device.
      chat_template: replaces the source's; Jinja text or a path.
      special_tokens: new control tokens; the embeddings grow where they have no row to spare, new
        rows are the mean of those in use.
      head: one of `ptjax.models.heads.HEADS`; by default what the source has. A language model
        gets a new scalar or value head, a `*ForSequenceClassification` of one label brings its own
        and is no language model.
      seed: of a new head.
      critic: what the critic of `lm_critic` begins as; None for the source itself.
      base: how kernels of the layers are kept, `int8` or `nf4` for a base that adapters train on.
      offload: whether those kernels lie in the host's memory; a layer's are brought to be used.

    Raises:
      UserError: nothing there, an unknown architecture, a damaged or mismatched file, an LM head
        asked of a reward model, a critic of another shape.
    """
    if param_dtype not in ("float32", "bfloat16"):
        raise UserError(f"param_dtype {param_dtype!r} is neither float32 nor bfloat16")
    check_base(base, where="model.base")
    if source.startswith("flax:"):
        from ptjax.models.flax_adapter import load_flax

        if special_tokens:
            raise UserError("model.special_tokens: a flax module's embeddings cannot grow")
        if base != "none":
            raise UserError(f"model.base = {base!r}: a flax module keeps its own kernels")
        if offload:
            raise UserError("model.offload: a flax module's kernels stay on their devices")
        bundle = load_flax(
            source[5:], param_dtype=param_dtype, mesh=mesh, chat_template=chat_template
        )
        return with_head(bundle, head, critic=critic)
    path = resolve_source(source)
    raw, generation, tensors = _open(path)
    whole = raw.get("model_type")
    part_of = whole if whole in COMPOSITES else None
    if part_of is not None:
        raw, tensors = language_config(raw, str(path)), language_tensors(part_of, tensors)
    config = read_config(raw, str(path))
    tokenizer = load_tokenizer(path, chat_template=chat_template)
    model = Decoder(config, head=_own_head(tensors))
    check_head(head, model.head, source)
    table = model.table
    if head == "score" and table.pop("head", None):
        tensors = Without(tensors, "lm_head.weight", tensors.origin)
    params = from_hf(
        *(table, config.dims, tensors),
        dtype=param_dtype,
        mesh=mesh,
        base=base,
        offload=offload,
    )
    dtypes = {name: spec.dtype for name, spec in tensors.specs().items()}
    bundle = Bundle(model, params, tokenizer, raw, generation, dtypes, source, part_of)
    bundle = with_tokens(bundle, special_tokens, mesh)
    return with_head(bundle, head, seed=seed, mesh=mesh, critic=critic)


def _own_head(tensors: TensorSource) -> str:
    """The head that a checkpoint brings: a `*ForSequenceClassification` has the tensor `score`."""
    found = tensors.specs().get(SCORE.hf)
    if found is None:
        return "lm"
    if found.shape[0] != 1:
        raise UserError(
            f"{tensors.origin}: a classifier of {found.shape[0]} labels; a reward model has one"
        )
    return "score"


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Any], TensorSource]:
    """config.json, generation_config.json and the tensors of a folder or a GGUF file."""
    if path.is_file():
        raw = gguf_config(path)
        return raw, {}, open_gguf(path, raw)
    raw = read_json(path / "config.json")
    return raw, _generation(path / "generation_config.json"), open_safetensors(path)


def _generation(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    ends = found.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and type(end) is not int:
            raise UserError(f"{path}: eos_token_id {ends!r} is neither an id nor a list of ids")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file of JSON, as config.json is.

    Raises:
      UserError: there is none.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name}; is this a model's folder?") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not JSON ({in_words(error)})") from error
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
        if isinstance(raw.get("text_config"), dict):
            raise UserError(
                f"{origin}: model_type {kind!r} is a model of more than text; of those the "
                f"language part of {', '.join(COMPOSITES)} is read, and no other"
            )
        hint = did_you_mean(str(kind), FAMILIES)
        raise UserError(f"{origin}: model_type {kind!r} is not supported{hint}")
    if raw.get("quantization_config"):
        raise UserError(
            f"{origin}: quantised checkpoints are not supported; use the original weights"
        )
    try:
        config = FAMILIES[kind].config(normalise(raw))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{origin}: config.json is not a valid {kind} config: {error!r}") from error
    if min(config.layers, config.heads, config.kv_heads) < 1 or config.heads % config.kv_heads:
        raise UserError(
            f"{origin}: config.json has {config.layers} layers of {config.heads} heads and "
            f"{config.kv_heads} key heads; there is one of each at least, and key heads divide the "
            "heads"
        )
    if config.activation not in ACTIVATIONS:
        hint = did_you_mean(str(config.activation), ACTIVATIONS)
        raise UserError(f"{origin}: activation {config.activation!r} is not supported{hint}")
    return config


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
