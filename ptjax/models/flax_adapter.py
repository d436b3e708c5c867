"""A user's own `flax.linen` or `flax.nnx` language model in the place of `Decoder`.

`config.model.source = "flax:my_file.build"` names a function without arguments that returns a dict:

    module          a flax.linen or flax.nnx Module
    tokenizer       a transformers tokenizer, or the source of one
    params          linen: its variables ({"params": ...}) or their "params"; nnx keeps its own
    max_positions   the longest sequence, 2048
    dropout         True where training passes are to run with `deterministic=False`

The module is called as

    module(tokens, positions, segment_ids, *, deterministic) -> logits [R, L, V]

with int32 [R, L] each: a token may look at tokens of its own segment whose position is not after
its own; segment 0 is padding. A module that has the methods `hidden` (the same call, giving
[R, L, D]) and `head` (no arguments, giving the kernel [D, V]) gets the chunked head, which never
holds a batch's logits. One whose `hidden` or `__call__` takes `embed_noise` [R, L, D] can use
NEFTune.

Parameters have flat names, `block_0.attn.q.kernel`. Their axes come from `nn.with_partitioning` or
nnx's sharding metadata, where those name axes of `ptjax.sharding.RULES`; else they are numbers and
not sharded. Shapes: R rows, L tokens a row, D embed, V vocabulary, S slots of the cache.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from ptjax import sharding
from ptjax.errors import UserError, check_keys
from ptjax.models import lora as lora_module
from ptjax.models.bundle import Bundle
from ptjax.models.cache import Cache
from ptjax.models.compute import Compute
from ptjax.models.config import ModelConfig
from ptjax.models.decoder import Decoder
from ptjax.models.flax_modules import Apply, from_linen, from_nnx, row
from ptjax.models.heads import Head
from ptjax.models.spec import Param
from ptjax.models.tokenizer import load_tokenizer, template_text
from ptjax.ops.decode import laid
from ptjax.ops.logprobs import logit_stats
from ptjax.ops.span import Span
from ptjax.types import Params, Weights

PREFIX = "flax:"
DEFAULT = Compute()
_BUILT = {"module", "tokenizer", "params", "max_positions", "dropout"}


@dataclass(frozen=True)
class FlaxConfig(ModelConfig):
    """What is known of a user's model; fields that only `Decoder` reads are empty.

    Attributes:
      sizes: of the axes that the table names.
    """

    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of the axes that the table names."""
        return dict(self.sizes)


@dataclass(frozen=True, eq=False)
class FlaxModel(Decoder):
    """A user's module behind `Decoder`'s methods; made by `wrap`."""

    apply: Apply = lambda *_: jnp.zeros(())
    declared: tuple[tuple[str, Param], ...] = ()
    chunked: bool = False
    noisy: bool = False
    dropout: bool = False

    def __post_init__(self):
        if self.lora and self.lora.dropout:
            raise UserError(
                "config.lora.dropout: adapters of a flax module are merged and have none"
            )

    @property
    def table(self) -> dict[str, Param]:
        """The module's parameters, without adapters."""
        return dict(self.declared)

    def is_random(self, compute: Compute) -> bool:
        """Whether a training pass draws anything but NEFTune's noise."""
        return self.dropout

    def hidden(
        self,
        params: Mapping[str, Array],
        tokens: Array,
        span: Span,
        *,
        compute: Compute = DEFAULT,
        key: Array | None = None,
        noise: Array | None = None,
    ) -> Array:
        """Final hidden states [R, L, D]; logits [R, L, V] of a module that has no `hidden`."""
        if compute.dropout or compute.remat not in ("none", "dots_and_attention"):
            raise UserError(
                "model.dropout and model.remat: a flax module has its own; set them to 0 and 'none'"
            )
        if compute.attention != "auto":
            raise UserError("model.attention: a flax module has its own; set it to 'auto'")
        if span.leads is not None:
            raise UserError(
                "config.data.prompts_once: a flax module sees no prompt that stands before another "
                "answer; set it to False"
            )
        extra = {}
        if noise is not None and key is not None:
            if not self.noisy:
                raise UserError("neftune: the flax module takes no `embed_noise`")
            shape = (*tokens.shape, self.config.embed)
            drawn = jax.random.uniform(jax.random.fold_in(key, 1), shape, minval=-1.0, maxval=1.0)
            extra["embed_noise"] = (drawn * noise[..., None]).astype(compute.dtype)
        train = self.dropout and key is not None
        method = "hidden" if self.chunked else "__call__"
        return self.apply(
            self._whole(params, compute),
            method,
            jax.random.fold_in(key, 2) if train and key is not None else None,
            *(tokens, span.positions, span.segments),
            deterministic=not train,
            **extra,
        )

    def _whole(self, params: Mapping[str, Array], compute: Compute | None = None) -> Params:
        """The module's own leaves, adapters merged: W + scale · A · B, differentiable."""
        merged = dict(params)
        if self.lora is not None:
            merged = lora_module.merge(params, self.table, self.lora)
        if compute is None:
            return merged
        floats = {k for k, leaf in merged.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
        return {k: v.astype(compute.dtype) if k in floats else v for k, v in merged.items()}

    def projection(self, params: Mapping[str, Array]) -> Head:
        """The kernel that the module's `head` gives."""
        return Head(self.apply(self._whole(params), "head", None), False, None)

    def stats(
        self,
        params: Mapping[str, Array],
        hidden: Array,
        targets: Array,
        scored: Array,
        **asked: Any,
    ) -> dict[str, Array]:
        """What the head, or the logits themselves, say of each target."""
        if self.chunked:
            return super().stats(params, hidden, targets, scored, **asked)
        fields, temperature = asked["fields"], asked.get("temperature", 1.0)
        return logit_stats(hidden, targets, scored, fields=fields, temperature=temperature)

    def divergence(self, params: Mapping[str, Array], *arrays: Any, **asked: Any) -> Array:
        """How far the head is from a teacher's."""
        if not self.chunked:
            raise UserError("divergence: the flax module has no `hidden` and `head`")
        return super().divergence(params, *arrays, **asked)

    def logits(self, params: Mapping[str, Array], hidden: Array) -> Array:
        """Float32 logits of what `hidden` gave."""
        return super().logits(params, hidden) if self.chunked else hidden.astype(jnp.float32)

    def new_cache(self, rows: int, slots: int, dtype: str) -> Cache:
        """A cache that holds the tokens themselves, as keys; every step reads all of them again."""
        return _tokens(jnp.zeros((rows, slots), jnp.int32), jnp.zeros(rows, jnp.int32))

    def apart(self, params: Mapping[str, Array]) -> None:
        """None: a module's layers are its own."""

    def read(
        self,
        params: Mapping[str, Array],
        tokens: Array,
        counts: Array,
        *,
        compute: Compute = DEFAULT,
    ) -> Cache:
        """A cache that holds prompts."""
        return _tokens(tokens, counts)

    def extend(
        self,
        params: Mapping[str, Array],
        tokens: Array,
        going: Array,
        cache: Cache,
        *,
        compute: Compute = DEFAULT,
        apart: Sequence[Weights] | None = None,
    ) -> tuple[Array, Cache]:
        """What `hidden` gives for one new token a row, by a pass over all that are there."""
        at, rows = cache.length, jnp.arange(len(tokens))
        seen = cache.k[0][:, 0, 0].at[rows, at].set(tokens, mode="drop")
        slots = jnp.broadcast_to(jnp.arange(seen.shape[1]), seen.shape)
        there = (slots < (at + going)[:, None]).astype(jnp.int32)
        out = self.hidden(params, seen, Span(slots, there), compute=compute)
        return out[rows, at], _tokens(seen, at + going)


def _tokens(tokens: Array, length: Array) -> Cache:
    k, v = laid(tokens[:, :, None, None], jnp.zeros((*tokens.shape, 1, 0), jnp.int32))
    return Cache((k,), (v,), length)


def wrap(
    module: Any, params: Any = None, *, max_positions: int = 2048, dropout: bool = False
) -> tuple[FlaxModel, Params]:
    """A module as a model of ours, and its parameters under flat names.

    Args:
      module: a flax.linen or flax.nnx Module, see this file's head.
      params: linen's variables; None draws them with seed 0. nnx modules hold their own.
      max_positions: the longest sequence.
      dropout: whether training passes run with `deterministic=False`.

    Raises:
      UserError: a module that is neither, or that cannot be called as it must.
    """
    try:
        if isinstance(module, nnx.Module):
            apply, leaves, names = from_nnx(module)
        elif isinstance(module, flax.linen.Module):
            apply, leaves, names = from_linen(module, params)
        else:
            kind = type(module).__name__
            raise UserError(f"flax module: {kind} is neither a flax.linen nor a flax.nnx Module")
        chunked = hasattr(module, "hidden") and hasattr(module, "head")
        one = jax.ShapeDtypeStruct((1, 2), jnp.int32)

        def look(leaves: Params, x: Array) -> tuple[Array, Array | None]:
            call = ("hidden" if chunked else "__call__", None, x, x, x)
            out = apply(leaves, *call, deterministic=True)
            return out, apply(leaves, "head", None) if chunked else None

        out, head = jax.eval_shape(look, leaves, one)
    except TypeError as error:
        raise UserError(f"flax module {type(module).__name__}: {error}") from error
    if head is not None and (head.ndim != 2 or head.shape[0] != out.shape[-1]):
        raise UserError(
            f"flax module {type(module).__name__}: head() has shape {head.shape}, not (embed "
            f"{out.shape[-1]}, vocabulary)"
        )
    vocab = out.shape[-1] if head is None else head.shape[1]
    rows = {name: row(name, leaf.shape, names.get(name), vocab) for name, leaf in leaves.items()}
    tables = [n for n, r in rows.items() if r.names[:1] == ("vocab",)]
    embed = out.shape[-1] if chunked else leaves[tables[0]].shape[1] if tables else 0
    sizes = {a: s for n, r in rows.items() for a, s in zip(r.names, leaves[n].shape, strict=True)}
    kind: Any = type(module)
    called = inspect.signature(kind.hidden if chunked else kind.__call__).parameters
    model = FlaxModel(
        _config(vocab, embed, max_positions, sizes),
        apply=apply,
        declared=tuple(rows.items()),
        chunked=chunked,
        noisy="embed_noise" in called,
        dropout=dropout,
    )
    return model, leaves


def _config(vocab: int, embed: int, max_positions: int, sizes: Mapping[str, int]) -> FlaxConfig:
    return FlaxConfig(
        family="flax",
        vocab=vocab,
        embed=embed,
        layers=0,
        heads=0,
        kv_heads=0,
        head_dim=0,
        mlp=0,
        eps=0.0,
        tied=False,
        ropes=(),
        rope_kind=(),
        window=(),
        max_positions=max_positions,
        attn_scale=1.0,
        sizes=tuple(sizes.items()),
    )


def load_flax(
    path: str,
    *,
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
    chat_template: str | None = None,
) -> Bundle:
    """Calls the user's `build` and places its parameters.

    Args:
      path: dotted path of the function, `my_file.build`.
      param_dtype: of the parameters.
      mesh: where the parameters go; None for the first device.
      chat_template: replaces the tokenizer's.

    Raises:
      UserError: nothing there, or not what this file's head asks for.
    """
    source = f"{PREFIX}{path}"
    built = _build(source, path)
    model, leaves = wrap(
        built["module"],
        built.get("params"),
        max_positions=built.get("max_positions", 2048),
        dropout=built.get("dropout", False),
    )
    tokenizer = _tokenizer(built, chat_template)
    mesh = sharding.one_device() if mesh is None else mesh
    params = {
        name: jax.device_put(
            leaf.astype(param_dtype), sharding.named(model.table[name].names, leaf.shape, mesh)
        )
        for name, leaf in leaves.items()
    }
    config = {"model_type": "flax", "architectures": [type(built["module"]).__name__]}
    dtypes = {name: leaf.dtype for name, leaf in leaves.items()}
    return Bundle(model, params, tokenizer, config, {}, dtypes, source)


def flax_tokenizer(path: str, *, chat_template: str | None = None) -> Any:
    """The tokenizer of `load_flax`, without the module's parameters on a device.

    Args:
      path: dotted path of the function, `my_file.build`.
      chat_template: replaces the tokenizer's.

    Raises:
      UserError: nothing there, or not what this file's head asks for.
    """
    return _tokenizer(_build(f"{PREFIX}{path}", path), chat_template)


def _tokenizer(built: dict[str, Any], chat_template: str | None) -> Any:
    tokenizer = built["tokenizer"]
    if isinstance(tokenizer, str):
        return load_tokenizer(tokenizer, chat_template=chat_template)
    if chat_template is not None:
        tokenizer.chat_template = template_text(chat_template)
    return tokenizer


def _build(source: str, path: str) -> dict[str, Any]:
    """What the user's function returns, checked."""
    module, _, attribute = path.rpartition(".")
    try:
        built = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"config.model.source {source!r}: {error}") from error
    if not isinstance(built, dict):
        raise UserError(
            f"config.model.source {source!r}: returned a {type(built).__name__}, not a dict"
        )
    check_keys(built, _BUILT, f"config.model.source {source!r}")
    for key in ("module", "tokenizer"):
        if key not in built:
            raise UserError(f"config.model.source {source!r}: its dict has no {key!r}")
    return built
