"""One decoder for every family: a pure function over a flat dict, its layers stacked and scanned.

Shapes: R rows, L tokens a row, D embed, H heads, K key heads, E head_dim, S slots of the cache.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ptjax.errors import UserError, did_you_mean
from ptjax.models import families
from ptjax.models.config import ModelConfig
from ptjax.models.experts import mixture
from ptjax.models.layers import PROJECTED, dropout, mlp, project, rms_norm, rotary_tables, rotate
from ptjax.models.lora import Lora
from ptjax.models.spec import Param
from ptjax.ops.attention import KERNELS, attention
from ptjax.ops.chunks import projection_axes
from ptjax.ops.decode import cached
from ptjax.ops.divergence import Teacher, token_divergence
from ptjax.ops.logprobs import token_stats
from ptjax.ops.span import ATTENDED, Span
from ptjax.sharding import HOST, STEPS, TOKENS, constrain, platform
from ptjax.types import Leaf, Routing, Weights

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED),
    "dots_and_attention": jax.checkpoint_policies.save_only_these_names(PROJECTED, ATTENDED),
    "offload_dots": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[PROJECTED, ATTENDED],
        offload_src="device",
        offload_dst=HOST,
    ),
}
"""What is kept of a layer for the backward pass, by name; all else is computed again.

A projection is kept once, adapter included: keeping every matrix product would keep the base's and
the adapter's apart. `offload_dots` keeps what `dots_and_attention` does in the host's memory.
"""


@dataclass(frozen=True)
class Compute:
    """How a forward pass is computed, whatever the model.

    Attributes:
      dtype: of activations and of the parameters as they are used.
      remat: what the backward pass recomputes of a layer: a key of `REMAT`.
      dropout: probability on embeddings and on each block's output, in training.
      attention: which kernel: one of `ops.attention.KERNELS`.
    """

    dtype: str = "float32"
    remat: str = "none"
    dropout: float = 0.0
    attention: str = "auto"

    def __post_init__(self):
        if self.attention not in KERNELS:
            hint = did_you_mean(self.attention, KERNELS)
            raise UserError(f"attention: {self.attention!r} is none of {', '.join(KERNELS)}{hint}")
        if self.remat not in REMAT:
            raise UserError(
                f"config.model.remat: unknown {self.remat!r}{did_you_mean(self.remat, REMAT)}"
            )


DEFAULT = Compute()


HEADS = ("lm", "score", "lm_value", "lm_critic")
"""What a decoder ends in: logits over the vocabulary, one number a token, or both.

Both: `lm_value` reads them from one body, `lm_critic` has a second body for the number: the leaves
`critic.*` of the same dict.
"""


class Head(NamedTuple):
    """The output projection: logits = hidden · kernelᵀ, capped to ±softcap where there is one."""

    kernel: Float[Array, "V D"] | Float[Array, "D V"]
    vocab_first: bool
    softcap: float | None


@flax.struct.dataclass
class Cache:
    """Keys and values of tokens already read: a row's token at position p lies in its slot p.

    Attributes:
      k: of each layer [R, K, E, S].
      v: of each layer [R, K, S, E].
      length: int32 [R], how many tokens each row holds; its slots from there on mean nothing.
    """

    k: tuple[Leaf, ...]
    v: tuple[Leaf, ...]
    length: Leaf


@dataclass(frozen=True)
class Decoder:
    """A decoder's static side; parameters are passed to every method.

    Attributes:
      config: the body's shape and features.
      lora: the adapters' settings, where it has any.
      head: one of `HEADS`.
    """

    config: ModelConfig
    lora: Lora | None = None
    head: str = "lm"

    @property
    def table(self) -> dict[str, Param]:
        """The model's rows, without adapters."""
        return families.table(self.config, self.head)

    def projection(self, params: Weights) -> Head:
        """The output projection, tied to the embeddings or its own.

        Raises:
          UserError: a model whose scalar head took the projection's place.
        """
        if self.config.tied:
            return Head(params["embed"], True, self.config.logit_softcap)
        if self.head == "score":
            raise UserError("a model with a scalar head has no log-probs: load it with head='lm'")
        return Head(params["head"], False, self.config.logit_softcap)

    def scores(self, params: Weights, hidden: Float[Array, "R L D"]) -> Float[Array, "R L"]:
        """The scalar head: hidden · score, in float32 whatever the dtype of the hidden states.

        Raises:
          UserError: a model without one.
        """
        if self.head != "score":
            raise UserError("scores need a model with a scalar head: load it with head='score'")
        return _scalar(hidden, params["score"])

    def values(
        self,
        params: Weights,
        hidden: Float[Array, "R L D"],
        tokens: Int[Array, "R L"],
        span: Span,
        *,
        compute: Compute = DEFAULT,
        key: Array | None = None,
    ) -> Float[Array, "R L"]:
        """What a value head says of the text up to each token, that token included; float32.

        Args:
          params: all leaves.
          hidden: what `hidden` gave; a second body has its own.
          tokens: token ids.
          span: positions and segments.
          compute: of a second body.
          key: randomness of a second body; None for evaluation.

        Raises:
          UserError: a model without one.
        """
        if self.head == "lm_value":
            return _scalar(hidden, params["value"])
        if self.head != "lm_critic":
            raise UserError("values need a value head: load it with head='lm_value' or 'lm_critic'")
        critic = replace(self, head="score")
        own = {
            name.removeprefix(families.CRITIC): leaf
            for name, leaf in params.items()
            if name.startswith(families.CRITIC)
        }
        key = None if key is None else jax.random.fold_in(key, 0)
        return critic.scores(own, critic.hidden(own, tokens, span, compute=compute, key=key))

    def logits(self, params: Weights, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states: for sampling and tests; training never calls it."""
        kernel, vocab_first, softcap = self.projection(params)
        out = jax.lax.dot_general(
            hidden,
            kernel.astype(hidden.dtype),
            (((hidden.ndim - 1,), (1 if vocab_first else 0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return out if softcap is None else softcap * jnp.tanh(out / softcap)

    def stats(
        self,
        params: Weights,
        hidden: Float[Array, "S M D"],
        targets: Int[Array, "S M"],
        scored: Bool[Array, "S M"],
        **asked: Any,
    ) -> dict[str, Float[Array, "S M"]]:
        """What the head says of each target: `ops.logprobs.token_stats`, with its settings."""
        kernel, vocab_first, softcap = self.projection(params)
        # On a mesh it is gathered once, not once a chunk.
        whole: Any = _whole(kernel.astype(hidden.dtype), vocab_first)
        return token_stats(
            hidden, whole, targets, scored, vocab_first=vocab_first, softcap=softcap, **asked
        )

    def divergence(
        self,
        params: Weights,
        hidden: Float[Array, "S M D"],
        teacher_hidden: Float[Array, "S M E"],
        scored: Bool[Array, "S M"],
        teacher: Teacher,
        **asked: Any,
    ) -> Float[Array, "S M"]:
        """How far the head is from a teacher's: `ops.divergence.token_divergence`."""
        kernel, vocab_first, softcap = self.projection(params)
        # On a mesh both are gathered once, not once a chunk.
        whole: Any = _whole(kernel.astype(hidden.dtype), vocab_first)
        taught: Any = _whole(teacher.kernel.astype(teacher_hidden.dtype), teacher.vocab_first)
        return token_divergence(
            *(hidden, whole, teacher_hidden, replace(teacher, kernel=taught), scored),
            vocab_first=vocab_first,
            softcap=softcap,
            **asked,
        )

    def is_random(self, compute: Compute) -> bool:
        """Whether a training pass draws anything but NEFTune's noise."""
        return bool(compute.dropout or (self.lora and self.lora.dropout))

    def new_cache(self, rows: int, slots: int, dtype: str) -> Cache:
        """An empty cache of `slots` tokens a row."""
        config = self.config

        def empty(*places: int) -> tuple[Array, ...]:
            shape = (rows, config.kv_heads, *places)
            return tuple(jnp.zeros(shape, dtype) for _ in range(config.layers))

        return Cache(
            k=empty(config.head_dim, slots),
            v=empty(slots, config.head_dim),
            length=jnp.zeros(rows, jnp.int32),
        )

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

    def read(
        self,
        params: Weights,
        tokens: Int[Array, "R L"],
        counts: Int[Array, " R"],
        *,
        compute: Compute = DEFAULT,
    ) -> Cache:
        """A cache of L slots that holds the keys and values of prompts.

        Args:
          params: all leaves.
          tokens: each row's prompt, padded on the right.
          counts: how many of them are real.
          compute: dtype of the computation.
        """
        there = jnp.arange(tokens.shape[1]) < counts[:, None]
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        span = Span(places, there.astype(jnp.int32))
        x, layers, flags = self._prepare(params, tokens, compute, None, None)
        tables, attend = self._rotary(span), self._attend(span, compute)

        def layer(x: Array, scanned: tuple) -> tuple[Array, tuple[Array, Array]]:
            weights, flag = scanned
            x, (k, v), _ = self._layer(weights, flag, x, tables, attend, span, compute, None)
            return x, (k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3))

        _, (k, v) = jax.lax.scan(layer, x, (layers, flags))
        return Cache(tuple(k), tuple(v), counts)

    def extend(
        self,
        params: Weights,
        tokens: Int[Array, " R"],
        going: Bool[Array, " R"],
        cache: Cache,
        *,
        compute: Compute = DEFAULT,
        apart: Sequence[Weights] | None = None,
    ) -> tuple[Float[Array, "R D"], Cache]:
        """Hidden states of one new token a row, and the cache with it added.

        Layers are not scanned: a scan would copy every layer's cache to read it.

        Args:
          params: all leaves.
          tokens: the rows' new tokens.
          going: rows that have one; others stay as they are.
          cache: with room for one more token in every row that goes on.
          compute: dtype of the computation.
          apart: from `apart`, where several tokens follow.
        """
        x, layers, flags = self._prepare(params, tokens[:, None], compute, None, None, STEPS)
        at = cache.length
        span = Span(at[:, None], going[:, None].astype(jnp.int32))
        tables, rows = self._rotary(span, STEPS), jnp.arange(len(at))
        alone: dict[str, Any] = {"mode": "drop", "unique_indices": True}
        made: list[tuple[Array, Array]] = []
        for i, (old_k, old_v) in enumerate(zip(cache.k, cache.v, strict=True)):

            def attend(q, k, v, window, old_k=old_k, old_v=old_v):
                k = old_k.at[rows, :, :, at].set(k[:, 0].astype(old_k.dtype), **alone)
                v = old_v.at[rows, :, at].set(v[:, 0].astype(old_v.dtype), **alone)
                y = cached(
                    *(q[:, 0], k.astype(q.dtype), v.astype(q.dtype), at, window),
                    scale=self.config.attn_scale,
                    softcap=self.config.attn_softcap,
                )
                return y[:, None], (k, v)

            flag = jax.tree.map(lambda leaf, i=i: leaf[i], flags)
            weights = apart[i] if apart else _at(layers, i, at)
            x, both, _ = self._layer(
                *(weights, flag, x, tables, attend, span, compute, None), at=STEPS
            )
            made.append(both)
        k, v = zip(*made, strict=True)
        return self._final(params, x)[:, 0], Cache(k, v, at + going)

    def apart(self, params: Weights) -> Sequence[Weights] | None:
        """Each layer's leaves out of the stacks, on a CPU: a second copy of them, quicker to read.

        A CPU copies a layer out of its stack whenever it uses it; other devices read it there.
        """
        if platform() != "cpu":
            return None
        layers = _stacks(params)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(self.config.layers)]

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

    def _prepare(self, params, tokens, compute, key, noise, at=TOKENS):
        """Embeddings, the stacked leaves, and each layer's flags: what a scan runs over."""
        config = self.config
        # Every device looks up its own tokens: the table is gathered, not the tokens.
        table = constrain(params["embed"].astype(compute.dtype), "vocab", None)
        x = constrain(table[constrain(tokens, *at)], *at, None)
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
        return constrain(x, *at, None), _stacks(params), flags

    def _layer(
        self, weights, flag, x, tables, attend, span, compute, key, *, at=TOKENS
    ) -> tuple[Array, Any, Routing | None]:
        """One layer; `attend(q, k, v, window)` gives attention's result and what it keeps."""
        config = self.config
        keys: tuple[Array | None, ...] = (None,) * 9
        if key is not None:
            keys = tuple(jax.random.split(jax.random.fold_in(key, 3 + flag["layer"]), 9))

        def norm(x: Array, name: str, axes: int = 1) -> Array:
            return rms_norm(x, weights[name], eps=config.eps, offset=config.norm_offset, axes=axes)

        def linear(name: str, x: Array, key: Array | None) -> Array:
            return project(weights, name, x, self.lora, key)

        y = norm(x, "attn_norm") if config.norm != "post" else x
        q, k, v = (linear(n, y, rng) for n, rng in zip("qkv", keys, strict=False))
        if config.qk_norm != "none":
            axes = 1 if config.qk_norm == "head" else 2
            q, k = norm(q, "q_norm", axes), norm(k, "k_norm", axes)
        cos, sin = _pick(tables[0], flag["rope"]), _pick(tables[1], flag["rope"])
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        alike = len(set(config.window)) == 1  # then a kernel may know it when it is compiled
        y, kept = attend(q, k, v, config.window[0] if alike else flag["window"])
        y = linear("o", y, keys[3])
        if config.norm != "pre":
            y = norm(y, "post_attn_norm")
        x = constrain(x + dropout(y, compute.dropout, keys[4]), *at, None)
        y = norm(x, "mlp_norm") if config.norm != "post" else x
        routing = None
        if config.experts:
            y, routing = mixture(weights, y, span.segments != 0, config, self.lora, at)
        else:
            y = mlp(weights, y, config, self.lora, keys[5:8])
        if config.norm != "pre":
            y = norm(y, "post_mlp_norm")
        x = constrain(x + dropout(y, compute.dropout, keys[8]), *at, None)
        return x, kept, routing

    def _final(self, params, x):
        return rms_norm(x, params["norm"], eps=self.config.eps, offset=self.config.norm_offset)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(kernel: Array, vocab_first: bool) -> Array:
    """An output projection on the mesh, split over the vocabulary alone.

    Its gradient lies as the kernel itself does: a constraint's own transpose would have every
    device keep all of it.
    """
    return constrain(kernel, *(("vocab", None) if vocab_first else (None, "vocab")))


def _whole_fwd(kernel: Array, vocab_first: bool) -> tuple[Array, None]:
    return _whole(kernel, vocab_first), None


def _whole_bwd(vocab_first: bool, _: None, gradient: Array) -> tuple[Array]:
    return (constrain(gradient, *projection_axes(vocab_first=vocab_first)),)


_whole.defvjp(_whole_fwd, _whole_bwd)


def _scalar(hidden: Float[Array, "R L D"], kernel: Float[Array, "D 1"]) -> Float[Array, "R L"]:
    # On a mesh every device has the whole kernel: a product and a sum that fuse.
    kernel = constrain(kernel.astype(jnp.float32), None, None)
    return jnp.sum(hidden.astype(jnp.float32) * kernel[:, 0], axis=-1)


def _pick(stack: Array, index: Array) -> Array:
    """stack[index], with no gather where there is but one."""
    return stack[0] if stack.shape[0] == 1 else stack[index]


def _stacks(params: Weights) -> Weights:
    """The leaves that layers share, all layers' in one."""
    return {
        name.removeprefix("layers."): leaf
        for name, leaf in params.items()
        if name.startswith("layers.")
    }


def _at(stacks: Any, layer: int, after: Array) -> Any:
    """One layer's part of stacked leaves, taken where `after` is known.

    What a loop takes of constant arrays at a constant place is taken before it, of all layers: a
    second copy of the model.
    """
    index, _ = jax.lax.optimization_barrier((jnp.int32(layer), after))
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacks
    )
