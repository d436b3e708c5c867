"""Reading prompts and writing tokens with keys and values kept.

Shapes: R rows, L tokens a row, D embed, H heads, K key heads, E head_dim, S slots of the cache.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ptjax.models.body import Body, stacked
from ptjax.models.compute import DEFAULT, Compute
from ptjax.ops import decode
from ptjax.ops.span import Span
from ptjax.sharding import STATIONARY, STEPS, brought, constrain, platform
from ptjax.types import Leaf, Weights

PROJECTIONS = [("copies", None, heads, None) for heads in ("heads", "kv_heads", "kv_heads")]
"""How queries, keys and values of a token of each row lie before each device takes its own rows."""


@flax.struct.dataclass
class Cache:
    """Keys and values of tokens already read: a row's token at position p lies in its slot p.

    Attributes:
      k: of each layer [R, K, E, S].
      v: of each layer, as `ops.decode` says.
      length: int32 [R], how many tokens each row holds; its slots from there on mean nothing.
    """

    k: tuple[Leaf, ...]
    v: tuple[Leaf, ...]
    length: Leaf


@dataclass(frozen=True)
class Cached(Body):
    """A body that goes on where it stopped."""

    def new_cache(self, rows: int, slots: int, dtype: str) -> Cache:
        """An empty cache with room for `slots` tokens a row."""
        config = self.config
        none = jnp.zeros((rows, decode.room(slots), config.kv_heads, config.head_dim), dtype)
        layers = [decode.laid(none, none) for _ in range(config.layers)]
        k, v = zip(*layers, strict=True)
        return Cache(k, v, jnp.zeros(rows, jnp.int32))

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
            return x, decode.laid(k, v)

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

        Layers are not scanned: a scan would copy every layer's cache to read it. On a mesh kernels
        but those of experts stay where they are, and what they make of a token of each row is added
        up.

        Args:
          params: all leaves.
          tokens: the rows' new tokens.
          going: rows that have one; others stay as they are.
          cache: with room for one more token in every row that goes on.
          compute: dtype of the computation.
          apart: from `apart`, where several tokens follow.
        """
        x, layers, flags = self._prepare(params, tokens[:, None], compute, None, None, STATIONARY)
        at = cache.length
        span = Span(at[:, None], going[:, None].astype(jnp.int32))
        tables = self._rotary(span, STEPS)
        axes = self.layer_axes
        made: list[tuple[Array, Array]] = []
        for i, (old_k, old_v) in enumerate(zip(cache.k, cache.v, strict=True)):

            def attend(q, k, v, window, old_k=old_k, old_v=old_v):
                q, k, v = (
                    constrain(x, *heads) for x, heads in zip((q, k, v), PROJECTIONS, strict=True)
                )
                y, *both = decode.extended(
                    *(q[:, 0], k[:, 0], v[:, 0], old_k, old_v, at, going, window),
                    scale=self.config.attn_scale,
                    softcap=self.config.attn_softcap,
                    kernel=compute.attention,
                )
                return constrain(y[:, None], *PROJECTIONS[0]), both

            flag = jax.tree.map(lambda leaf, i=i: leaf[i], flags)
            weights = apart[i] if apart else _at(layers, i, at, axes)
            x, both, _ = self._layer(
                *(weights, flag, x, tables, attend, span, compute, None), at=STATIONARY
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
        layers = brought(stacked(params))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(self.config.layers)]


def _at(stacks: Weights, layer: int, after: Array, axes: Mapping[str, Sequence[str]]) -> Weights:
    """One layer's part of stacked leaves, taken where `after` is known, each where its stack lies.

    What a loop takes of constant arrays at a constant place is taken before it, of all layers, and
    so is what it gathers of them before it takes a part: a second copy of the model.
    """
    index, _ = jax.lax.optimization_barrier((jnp.int32(layer), after))

    def part(name: str, leaf: Array) -> Array:
        taken = jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)
        return constrain(brought(taken), *axes[name])

    return {
        name: jax.tree.map(functools.partial(part, name), leaf) for name, leaf in stacks.items()
    }
