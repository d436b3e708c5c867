"""A run's checkpoint as a model, and `load` for every kind of source."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from ptjax import sharding
from ptjax.checkpoint.reading import Stored, open_step
from ptjax.errors import UserError
from ptjax.models import load as pretrained
from ptjax.models import lora as lora_module
from ptjax.models.adapt import adapt, changed
from ptjax.models.bundle import Bundle, check_head, with_head, with_tokens
from ptjax.models.convert import away
from ptjax.models.decoder import Decoder
from ptjax.models.families import SCALARS
from ptjax.models.fingerprint import fingerprint
from ptjax.models.lora import Lora
from ptjax.models.quantised import check_base, quantised
from ptjax.models.spec import Param, shape
from ptjax.models.tokenizer import add_special_tokens, load_tokenizer
from ptjax.run_files import RECORD, local_copy, read_object, split_source, write_model_files
from ptjax.types import Params

__all__ = [
    "RunBundle",
    "load",
    "load_workdir",
    "merged",
    "source_tokenizer",
    "split_source",
    "write_model_files",
]

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class RunBundle(Bundle):
    """The model of a run's checkpoint.

    Attributes:
      step: the checkpoint's.
      changed: the model's own leaves, adapters aside, that are not those of the base: trained
        whole, or grown by special tokens.
      pooling: how the run made one vector of a text's hidden states: `last` or `mean`.
    """

    step: int = 0
    changed: tuple[str, ...] = ()
    pooling: str = "last"


def load(
    source: str,
    *,
    param_dtype: str | None = None,
    mesh: Mesh | None = None,
    chat_template: str | None = None,
    special_tokens: Sequence[str] = (),
    head: str | None = None,
    seed: int = 0,
    critic: str | None = None,
    base: str = "none",
    offload: bool = False,
) -> Bundle:
    """Loads a model from wherever it lies: a pretrained one, or what a run of ours made of it.

    A run's adapters are merged into its weights, so that a second run (DPO after SFT) starts from
    the whole model; `load_workdir` keeps them apart.

    Args:
      source: a registered name, a local folder, a .gguf file, a hub id, a run's `workdir` (its
        newest checkpoint that verifies) or `workdir@step`.
      param_dtype: of the parameters, `float32` or `bfloat16`; by default float32, for a run what it
        trained in.
      mesh: where the parameters go, by the rules of `ptjax.sharding`; None for the first device.
      chat_template: replaces the source's; Jinja text or a path.
      special_tokens: new control tokens; the embeddings grow where they have no row to spare, new
        rows are the mean of those in use.
      head: one of `ptjax.models.heads.HEADS`; by default what the source has, see
        `ptjax.models.load.load`. A run's value head or critic is kept where one is asked for.
      seed: of a new head.
      critic: what a new critic begins as, of the source's shape; None for the source itself. A
        reward model, or a run that trained one, brings its scalar head along.
      base: how kernels of the layers are kept, `int8` or `nf4` for a base that adapters train on.
      offload: whether those kernels lie in the host's memory; a layer's are brought to be used.

    Raises:
      UserError: nothing there, an unknown architecture, a damaged or mismatched file, an LM head
        asked of a reward model, a critic of another shape.
    """
    workdir, step = split_source(source)
    made = None
    if critic is not None:
        asked: dict[str, Any] = {"mesh": mesh, "special_tokens": special_tokens, "base": base}
        made = load(critic, param_dtype=param_dtype, offload=offload, **asked)
    if workdir is None:
        return pretrained.load(
            source,
            param_dtype=param_dtype or "float32",
            mesh=mesh,
            chat_template=chat_template,
            special_tokens=special_tokens,
            head=head,
            seed=seed,
            critic=made,
            base=base,
            offload=offload,
        )
    check_base(base, where="base")
    if param_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"param_dtype {param_dtype!r} is neither float32 nor bfloat16")
    record = read_object(epath.Path(workdir) / "model" / RECORD)
    check_head(head, record.get("head", "lm"), source)
    bundle = merged(load_workdir(workdir, step, mesh, chat_template=chat_template))
    bundle = with_tokens(bundle, special_tokens, mesh)
    if param_dtype is not None:
        cast = {
            name: leaf if name in SCALARS else leaf.astype(param_dtype)
            for name, leaf in bundle.params.items()
        }
        bundle = replace(bundle, params=cast)
    if base != "none":
        where = sharding.one_device() if mesh is None else mesh
        kept = quantised(bundle.params, bundle.model.table, base, where)
        bundle = replace(bundle, params=kept)
    if offload:
        rows = bundle.model.table
        kept = {name: away(leaf, rows[name]) for name, leaf in bundle.params.items()}
        bundle = replace(bundle, params=kept)
    return with_head(bundle, head, seed=seed, mesh=mesh, critic=made)


def source_tokenizer(
    source: str, *, chat_template: str | None = None, special_tokens: Sequence[str] = ()
) -> Any:
    """The tokenizer that `load` gives, without reading the model.

    Args:
      source: as of `load`.
      chat_template: replaces the source's; Jinja text or a path.
      special_tokens: new control tokens.

    Raises:
      UserError: nothing there, or no tokenizer in it.
    """
    workdir, _ = split_source(source)
    if workdir is not None:
        folder = local_copy(epath.Path(workdir) / "model")
        tokenizer = load_tokenizer(folder, chat_template=chat_template)
    elif source.startswith("flax:"):
        from ptjax.models.flax_adapter import flax_tokenizer

        tokenizer = flax_tokenizer(source[5:], chat_template=chat_template)
    else:
        tokenizer = load_tokenizer(source, chat_template=chat_template)
    if special_tokens:
        add_special_tokens(tokenizer, list(special_tokens))
    return tokenizer


def merged(bundle: Bundle) -> Bundle:
    """The same model with its adapters folded into its weights, which it takes from the bundle."""
    lora = bundle.model.lora
    if lora is None:
        return bundle
    lora_module.merge_in_place(bundle.params, bundle.model.table, lora)
    return replace(bundle, model=replace(bundle.model, lora=None))


def load_workdir(
    path: str | os.PathLike[str],
    step: int | None = None,
    mesh: Mesh | None = None,
    *,
    ema: bool | None = None,
    chat_template: str | None = None,
) -> RunBundle:
    """Loads the model of a run's checkpoint, its adapters beside the weights (`model.lora`).

    The base model is read only where the checkpoint lacks leaves, because they were frozen; it must
    be the one that the run began with.

    Args:
      path: the workdir, local or gs://.
      step: which checkpoint; by default the newest that verifies.
      mesh: where the parameters go; None for the first device.
      ema: whether to take the moving average of the trained leaves instead of the last step's; by
        default where the run kept one, as its evaluation did.
      chat_template: replaces the run's; Jinja text or a path.

    Raises:
      UserError: no run there, no such step (its message lists the steps), nothing that verifies
        (exit code 3), no moving average, or a base model that is not there or not the same.
    """
    root = epath.Path(path)
    config = read_object(root / "config.json")
    stored = open_step(path, step)
    for bad in stored.passed_over:
        _log.warning("step %d does not verify: %s; taking %d", bad.step, bad.reason, stored.step)
    mesh = sharding.one_device() if mesh is None else mesh
    folder = local_copy(root / "model")
    hf_config, record = read_object(folder / "config.json"), read_object(folder / RECORD)
    generation = read_object(folder / "generation_config.json")
    tokenizer = load_tokenizer(folder, chat_template=chat_template)
    lora = Lora(**record["lora"]) if record["lora"] else None
    if hf_config.get("model_type") == "flax":  # the module is the user's: built again
        module = pretrained.load(config["model"]["source"], mesh=mesh).model
        model = replace(module, lora=lora)
    else:
        body = pretrained.read_config(hf_config, str(root / "model"))
        model = Decoder(body, lora, record.get("head", "lm"))
    trained = _read(stored, model.rows, model, mesh, ema=ema)
    frozen, moved = _frozen(config, model, trained, mesh)
    _same_base(frozen, stored, config)
    params = {**frozen, **trained}
    return RunBundle(
        model=model,
        params={name: params[name] for name in model.rows},
        tokenizer=tokenizer,
        hf_config=hf_config,
        generation_config=generation,
        dtypes={name: jnp.dtype(dtype) for name, dtype in record["tensor_dtypes"].items()},
        source=config["model"]["source"] if lora else f"{path}@{stored.step}",
        part_of=record.get("part_of") if lora else None,
        step=stored.step,
        changed=tuple(name for name in model.table if name in trained or name in moved),
        pooling=config["model"].get("pooling", "last"),
    )


def _read(
    stored: Stored, rows: Mapping[str, Param], model: Decoder, mesh: Mesh, *, ema: bool | None
) -> Params:
    """The trained leaves of a checkpoint, into their sharding."""
    if ema is None:
        ema = any(full.startswith("ema/") for full in stored.leaves)
    prefix = "ema/" if ema else "params/"
    dims = {**model.config.dims, "rank": model.lora.rank if model.lora else 0}
    asked = {}
    for full, leaf in stored.leaves.items():
        if not full.startswith(prefix):
            continue
        name = full.removeprefix(prefix)
        if name not in rows or leaf.shape != shape(rows[name], dims):
            raise UserError(f"{stored.folder}: {name} {leaf.shape} is no leaf of the run's model")
        placed = sharding.named(rows[name].names, leaf.shape, mesh)
        asked[full] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)
    if not asked and ema:
        raise UserError(f"{stored.folder}: no moving average; it is kept where config.ema > 0")
    found = {name.removeprefix(prefix): leaf for name, leaf in stored.read(asked).items()}
    return {
        name: leaf.astype(stored.leaves[f"params/{name}"].dtype) for name, leaf in found.items()
    }


def _frozen(
    config: Mapping[str, Any], model: Decoder, trained: Params, mesh: Mesh
) -> tuple[Params, set[str]]:
    """The leaves that the checkpoint lacks, and those of them that the base model does not have so.

    They are the base model's; where it was changed before the first step (adapters as they were
    made, leaves that came with an adapter's folder), that is done again.
    """
    missing = [name for name in model.rows if name not in trained]
    if not missing:
        return {}, set()
    settings = config["model"]
    base = load(
        settings["source"],
        param_dtype=settings["param_dtype"],
        mesh=mesh,
        special_tokens=tuple(settings["special_tokens"]),
        head=model.head,
        seed=config["seed"],
        critic=settings.get("critic"),
        base=settings.get("base", "none"),
    )
    params = base.params
    folder = (config.get("lora") or {}).get("adapter")
    came_along = folder is not None and os.path.isdir(folder)
    if came_along or any(name not in params for name in missing):
        params = adapt(base, config.get("lora"), seed=config["seed"], mesh=mesh)[0].params
    if absent := [name for name in missing if name not in params]:
        raise UserError(f"{settings['source']} has no {absent[0]}: it is not the run's base model")
    kept = {name: params[name] for name in missing}
    return kept, changed(base.params, kept, settings["special_tokens"])


def _same_base(frozen: Params, stored: Stored, config: Mapping[str, Any]) -> None:
    expected = stored.host().get("frozen")
    if expected is not None and fingerprint(frozen) != expected:
        raise UserError(
            f"{config['model']['source']} is not the model that the run of {stored.folder} began "
            "with: its weights differ; give back the one it had"
        )
