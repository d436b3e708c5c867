"""What runs on the device: prefill, and decoding with a cache in stretches of many steps.

Shapes: R rows, L tokens of a prompt, S slots of the cache, N steps of a stretch.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ptjax import sharding
from ptjax.generate.sampling import Sampling, draw
from ptjax.models.decoder import Cache, Compute, Decoder
from ptjax.ops.attention import Span

STRETCH = 32
"""Steps between two looks of the host, which checks stop strings."""


class Steps(NamedTuple):
    """What some decoding steps made: [R, N]; -1 where a row had ended."""

    tokens: Int[Array, "R N"]
    logps: Float[Array, "R N"]
    done: Bool[Array, " R"]


@flax.struct.dataclass
class Rows:
    """Rows in flight.

    Attributes:
      cache: keys and values of all tokens but the last.
      last: each row's last token.
      position: where the last token stands.
      keys: randomness of each row.
      count: tokens that a row has been given since its prompt.
    """

    cache: Cache
    last: Int[Array, " R"]
    position: Int[Array, " R"]
    keys: Key[Array, " R"]
    count: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("model", "compute", "slots"))
def prefill(
    model: Decoder,
    params: Mapping[str, Array],
    tokens: Int[Array, "R L"],
    counts: Int[Array, " R"],
    seeds: UInt32[Array, "R 2"],
    sampling: Sampling,
    stop_ids: Int[Array, " stops"],
    *,
    compute: Compute,
    slots: int,
) -> tuple[Steps, Rows]:
    """Reads left-padded prompts and draws the first token of each."""
    size, length = tokens.shape
    offsets = jnp.arange(length) - (length - counts[:, None])
    span = Span(jnp.maximum(offsets, 0), (offsets >= 0).astype(jnp.int32))
    cache = _pin(model.new_cache(size, length, compute.dtype))
    hidden, cache = model.extend(params, tokens, span, cache, compute=compute)
    keys = jax.vmap(lambda seed: jax.random.wrap_key_data(seed, impl="threefry2x32"))(seeds)
    first = Rows(_pin(_longer(cache, slots)), tokens[:, -1], counts - 1, keys, jnp.int32(0))
    token, logp, state = _next(model, params, hidden[:, -1], first, sampling)
    done = (token[:, None] == stop_ids).any(1)
    return _shared(Steps(token[:, None], logp[:, None], done)), state


@functools.partial(jax.jit, static_argnames=("model", "compute"), donate_argnames=("state",))
def decode(
    model: Decoder,
    params: Mapping[str, Array],
    state: Rows,
    done: Bool[Array, " R"],
    steps: Int[Array, ""],
    sampling: Sampling,
    stop_ids: Int[Array, " stops"],
    *,
    compute: Compute,
) -> tuple[Steps, Rows]:
    """At most `steps` tokens a row, fewer when all rows are done before."""
    size = len(done)
    made = Steps(jnp.full((size, STRETCH), -1), jnp.zeros((size, STRETCH), jnp.float32), done)

    def unfinished(carry: tuple[Array, Steps, Rows]) -> Array:
        i, made, _ = carry
        return (i < steps) & ~made.done.all()

    def step(carry: tuple[Array, Steps, Rows]) -> tuple[Array, Steps, Rows]:
        i, made, state = carry
        span = Span(state.position[:, None], jnp.ones((size, 1), jnp.int32))
        hidden, cache = model.extend(
            params, state.last[:, None], span, state.cache, compute=compute
        )
        state = replace(state, cache=_pin(cache))
        token, logp, state = _next(model, params, hidden[:, 0], state, sampling)
        made = Steps(
            made.tokens.at[:, i].set(jnp.where(made.done, -1, token)),
            made.logps.at[:, i].set(logp),
            made.done | (token[:, None] == stop_ids).any(1),
        )
        return i + 1, made, state

    _, made, state = jax.lax.while_loop(unfinished, step, (jnp.int32(0), made, state))
    return _shared(made), state


def _next(
    model: Decoder, params: Mapping[str, Array], hidden: Array, state: Rows, sampling: Sampling
) -> tuple[Array, Array, Rows]:
    """Draws each row's next token from its hidden state [R, D]."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
    token, logp = draw(model.logits(params, hidden), keys, sampling)
    state = replace(state, last=token, position=state.position + 1, count=state.count + 1)
    return token, logp, state


def _longer(cache: Cache, slots: int) -> Cache:
    """The same cache with room for more tokens."""
    more = slots - cache.positions.shape[1]
    return replace(
        cache,
        k=jnp.pad(cache.k, ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))),
        v=jnp.pad(cache.v, ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))),
        positions=jnp.pad(cache.positions, ((0, 0), (0, more))),
        segments=jnp.pad(cache.segments, ((0, 0), (0, more))),
    )


def _pin(cache: Cache) -> Cache:
    """Keeps a cache's rows and heads where the mesh wants them."""
    axes = (None, "batch", None, "kv_heads", None)
    k, v = (sharding.constrain(x, *axes) for x in (cache.k, cache.v))
    return replace(cache, k=k, v=v)


def _shared(steps: Steps) -> Steps:
    """What the host reads, on every device."""
    return jax.tree.map(lambda x: sharding.constrain(x, *(None,) * x.ndim), steps)
