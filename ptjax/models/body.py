"""The layers of every family: a pure function over a flat dict, its layers stacked and scanned.

Shapes: R rows, L tokens a row, D embed, H heads, K key heads, E head_dim.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ptjax.models import families
from ptjax.models.compute import DEFAULT, REMAT, Compute
from ptjax.models.config import ModelConfig
from ptjax.models.experts import mixture
from ptjax.models.layers import CARRIED, dropout, mlp, project, rms_norm, rotary_tables, rotate
from ptjax.models.lora import Lora
from ptjax.models.lora import rows as adapters
from ptjax.models.parts import Keys, in_parts
from ptjax.models.spec import Param
from ptjax.ops.attention import attention
from ptjax.ops.span import Span
from ptjax.sharding import HIDDEN, STATIONARY, STEPS, TOKENS, brought, constrain
from ptjax.types import Routing, Weights

ATTENTION = ("q", "q_norm", "k", "k_norm", "v", "o")
MLP = ("gate", "up", "down")
"""Leaves of a layer's two blocks."""


@dataclass(frozen=True)
class Body:
    """A decoder's static side without what it ends in; parameters are passed to every method.

    Attributes:
      config: the body's shape and features.
      lora: the adapters' settings, where it has any.
      head: one of `heads.HEADS`.
    """

    config: ModelConfig
    lora: Lora | None = None
    head: str = "lm"

    @property
    def table(self) -> dict[str, Param]:
        """The model's rows, without adapters."""
        return families.table(self.config, self.head)

    @property
    def rows(self) -> dict[str, Param]:
        """The model's rows and its adapters'."""
        return self.table | (adapters(self.table, self.lora) if self.lora else {})

    @property
    def layer_axes(self) -> dict[str, tuple[str, ...]]:
        """The logical axes of a layer's leaves, by their names in it."""
        return {
            name.removeprefix("layers."): row.names[1:]
            for name, row in self.rows.items()
            if row.stacked
        }

    def is_random(self, compute: Compute) -> bool:
        """Whether a training pass draws anything but NEFTune's noise."""
        return bool(compute.dropout or (self.lora and self.lora.dropout))

    def hidden(
        self,
        params: Weights,
        tokens: Int[Array, "R L"],
        span: Span,
        *,
        compute: Compute = DEFAULT,
        key: Array | None = None,
        noise: Float[Array, "R L"] | None = None,
    ) -> Float[Array, "R L D"]:
        """Final hidden states, after the last norm.

        Args:
          params: all leaves, trainable and frozen.
          tokens: token ids.
          span: positions and segments; attention stays within a segment.
          compute: dtype, remat, dropout.
          key: randomness of dropout and noise; None for evaluation.
          noise: NEFTune's half-width for each token: embeddings get U(-noise, noise) added.
        """
        return self.routed(params, tokens, span, compute=compute, key=key, noise=noise)[0]

    def routed(
        self,
        params: Weights,
        tokens: Int[Array, "R L"],
        span: Span,
        *,
        compute: Compute = DEFAULT,
        key: Array | None = None,
        noise: Float[Array, "R L"] | None = None,
    ) -> tuple[Float[Array, "R L D"], Routing | None]:
        """What `hidden` gives, and where a mixture of experts sent the tokens; else None."""
        x, layers, flags = self._prepare(params, tokens, compute, key, noise)
        tables, attend = self._rotary(span), self._attend(span, compute)

        def layer(x: Array, scanned: tuple) -> tuple[Array, Routing | None]:
            weights, flag = scanned
            x, _, routing = self._layer(weights, flag, x, tables, attend, span, compute, key)
            return x, routing

        if compute.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[compute.remat], prevent_cse=False)
        x, routing = jax.lax.scan(layer, x, (layers, flags))
        return self._final(params, x), routing

    def _attend(self, span: Span, compute: Compute) -> Any:
        """Attention of whole sequences to themselves; keys and values come back as they went in."""

        def attend(q, k, v, window):
            y = attention(
                *(q, k, v, span, span, window),
                scale=self.config.attn_scale,
                softcap=self.config.attn_softcap,
                aligned=True,
                kernel=compute.attention,
            )
            return y, (k, v)

        return attend

    def _rotary(self, span: Span, at: tuple[str, str | None] = TOKENS) -> tuple[Array, Array]:
        """cos and sin of each token, where the token lies."""
        cos, sin = rotary_tables(self.config, span.positions)
        return constrain(cos, None, *at, None), constrain(sin, None, *at, None)

    def _prepare(self, params, tokens, compute, key, noise, at=HIDDEN):
        """Embeddings, the stacked leaves, and each layer's flags: what a scan runs over."""
        config = self.config
        # Every device looks up its own tokens: the table is gathered, not the tokens. Or all
        # tokens, in its part of the table.
        table = constrain(params["embed"].astype(compute.dtype), "vocab", at[2])
        x = constrain(table[constrain(tokens, *at[:2])], *at)
        if config.embed_scale != 1.0:
            x = x * jnp.asarray(config.embed_scale, x.dtype)
        if noise is not None and key is not None:
            drawn = jax.random.uniform(jax.random.fold_in(key, 1), x.shape, minval=-1.0, maxval=1.0)
            x = x + (drawn * noise[..., None]).astype(x.dtype)
        if key is not None:
            x = dropout(x, compute.dropout, jax.random.fold_in(key, 2))
        nope = len(config.ropes)
        flags = {
            "layer": jnp.arange(config.layers),
            "rope": jnp.array([nope if kind < 0 else kind for kind in config.rope_kind]),
            "window": jnp.array(config.window),
        }
        return constrain(x, *at), stacked(params), flags

    def _layer(
        self, weights, flag, x, tables, attend, span, compute, key, *, at=HIDDEN
    ) -> tuple[Array, Any, Routing | None]:
        """One layer; `attend(q, k, v, window)` gives attention's result and what it keeps."""
        config, weights = self.config, brought(weights)
        keys: Keys = (None,) * 9
        if key is not None:
            keys = tuple(jax.random.split(jax.random.fold_in(key, 3 + flag["layer"]), 9))
        cos, sin = _pick(tables[0], flag["rope"]), _pick(tables[1], flag["rope"])
        alike = len(set(config.window)) == 1  # then a kernel may know it when it is compiled
        window = config.window[0] if alike else flag["window"]
        parts = None
        if at == HIDDEN and compute.remat == "minimal":
            parts = functools.partial(in_parts, layer=weights, names=self.layer_axes)

        x, kept = checkpoint_name(x, CARRIED), None
        if parts and heads_in_parts(config):
            sizes = {"heads": config.heads, "kv_heads": config.kv_heads}
            block = functools.partial(self._attended_alone, compute, window if alike else None)
            context = span, cos, sin, flag["window"]
            scale = weights.get("attn_norm")
            y = parts(block, ATTENTION, self._norm, sizes, x, context, keys[:4], scale=scale)
        else:
            y = self._norm(x, weights.get("attn_norm"))
            y, kept = self._attended(attend, weights, y, (cos, sin, window), keys[:4])
        y = self._norm(y, weights.get("post_attn_norm"))
        x = constrain(x + dropout(y, compute.dropout, keys[4]), *at)
        routing = None
        if parts and not config.experts:
            sizes, scale = {"mlp": config.mlp}, weights.get("mlp_norm")
            y = parts(self._fed, MLP, self._norm, sizes, x, None, keys[5:8], scale=scale)
        else:
            y = self._norm(x, weights.get("mlp_norm"))
            if config.experts:
                own = STEPS if at == STATIONARY else TOKENS
                y = constrain(y, *own, None)
                y, routing = mixture(weights, y, span.segments != 0, config, self.lora, own)
            else:
                y = self._fed(weights, y, None, keys[5:8])
        y = self._norm(y, weights.get("post_mlp_norm"))
        x = constrain(x + dropout(y, compute.dropout, keys[8]), *at)
        return x, kept, routing

    def _attended(
        self, attend: Any, weights: Weights, y: Array, where: Any, keys: Keys
    ) -> tuple[Array, Any]:
        """From a layer's normalised inputs to its output projection, and what attention keeps."""
        config, (cos, sin, window) = self.config, where
        q, k, v = (
            project(weights, name, y, self.lora, key)
            for name, key in zip("qkv", keys, strict=False)
        )
        if config.qk_norm != "none":
            axes = 1 if config.qk_norm == "head" else 2
            q, k = self._norm(q, weights["q_norm"], axes), self._norm(k, weights["k_norm"], axes)
        y, kept = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, window)
        return project(weights, "o", y, self.lora, keys[3]), kept

    def _attended_alone(
        self,
        compute: Compute,
        known: int | None,
        weights: Weights,
        y: Array,
        where: Any,
        keys: Keys,
    ) -> Array:
        """The same of what heads there are, of whole sequences; the window may be known."""
        span, cos, sin, window = where
        window = window if known is None else known
        attend = self._attend(span, compute)
        return self._attended(attend, weights, y, (cos, sin, window), keys)[0]

    def _fed(self, weights: Weights, y: Array, _: None, keys: Keys) -> Array:
        return mlp(weights, y, self.config, self.lora, keys)

    def _norm(self, x: Array, scale: Array | None, axes: int = 1) -> Array:
        """The family's norm; without a scale there is none."""
        if scale is None:
            return x
        config = self.config
        return rms_norm(x, scale, eps=config.eps, offset=config.norm_offset, axes=axes)

    def _final(self, params, x):
        return self._norm(x, params["norm"])


def heads_in_parts(config: ModelConfig) -> bool:
    """Whether a layer's heads can be computed a part at a time: no norm is over them all."""
    return config.qk_norm != "full"


def _pick(stack: Array, index: Array) -> Array:
    """stack[index], with no gather where there is but one."""
    return stack[0] if stack.shape[0] == 1 else stack[index]


def stacked(params: Weights) -> Weights:
    """The leaves that layers share, all layers' in one."""
    return {
        name.removeprefix("layers."): leaf
        for name, leaf in params.items()
        if name.startswith("layers.")
    }
