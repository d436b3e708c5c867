"""What runs on the device: prompts are read, answers take free rows, all rows decode together.

A prompt is read once; each of its answers begins with a copy of its keys and values, in a row of
its own. A row that has ended is given to the next answer: shapes never change.

Shapes: R rows, S slots of a row, G prompts read together, L tokens of a prompt, N steps.
"""

import functools
from dataclasses import replace
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ptjax import sharding
from ptjax.generate.sampling import Sampling, draw
from ptjax.models.cache import Cache
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.ops.decode import KEYS, values
from ptjax.types import Leaf, Weights

STRETCH = 32
"""Steps between two looks of the host, which checks stop strings and gives rows away."""


class Steps(NamedTuple):
    """What some decoding steps made: [R, N]; -1 where a row had ended."""

    tokens: Int[Array, "R N"]
    logps: Float[Array, "R N"]
    done: Bool[Array, " R"]
    taken: Int[Array, ""]


@flax.struct.dataclass
class Rows:
    """Answers in flight.

    Attributes:
      cache: keys and values of all tokens but each row's last.
      last: int32 [R], each row's last token.
      keys: [R], randomness of each row.
      count: int32 [R], tokens that a row has been given since its prompt.
      limit: int32 [R], tokens that it may have.
    """

    cache: Cache
    last: Leaf
    keys: Leaf
    count: Leaf
    limit: Leaf


@functools.partial(jax.jit, static_argnames=("model", "rows", "slots", "dtype"))
def begin(model: Decoder, rows: int, slots: int, dtype: str) -> Rows:
    """Rows that hold nothing."""
    zeros = jnp.zeros(rows, jnp.int32)
    keys = _keys(jnp.zeros((rows, 2), jnp.uint32))
    return Rows(_pin(model.new_cache(rows, slots, dtype)), zeros, keys, zeros, zeros)


@functools.partial(jax.jit, static_argnames=("model", "compute"))
def prefill(
    model: Decoder,
    params: Weights,
    tokens: Int[Array, "G L"],
    counts: Int[Array, " G"],
    *,
    compute: Compute,
) -> Cache:
    """Keys and values of prompts, each without its last token, padded on the right."""
    return _pin(model.read(params, tokens, counts, compute=compute))


@functools.partial(jax.jit, donate_argnames=("rows",))
def admit(
    rows: Rows,
    prompts: Cache,
    which: Int[Array, " R"],
    last: Int[Array, " R"],
    seeds: UInt32[Array, "R 2"],
    limit: Int[Array, " R"],
) -> Rows:
    """Gives rows to new answers.

    Args:
      rows: some of which have ended.
      prompts: from `prefill`.
      which: the prompt that each row begins with; -1 leaves the row as it is.
      last: the last token of that prompt.
      seeds: of each answer.
      limit: tokens that each answer may have.
    """
    new, take = which >= 0, jnp.maximum(which, 0)

    def begun(old: Array, read: Array, slots: int) -> Array:
        room = [slice(None)] * old.ndim
        room[slots] = slice(min(read.shape[slots], old.shape[slots]))
        there = jnp.where(new[:, None, None, None], read[take][*room], old[*room])
        return old.at[*room].set(there.astype(old.dtype))

    old = rows.cache
    cache = Cache(
        tuple(begun(*both, slots=KEYS) for both in zip(old.k, prompts.k, strict=True)),
        tuple(begun(*both, slots=values()) for both in zip(old.v, prompts.v, strict=True)),
        jnp.where(new, prompts.length[take], old.length),
    )
    return Rows(
        cache=_pin(cache),
        last=jnp.where(new, last, rows.last),
        keys=jnp.where(new, _keys(seeds), rows.keys),
        count=jnp.where(new, 0, rows.count),
        limit=jnp.where(new, limit, rows.limit),
    )


@functools.partial(jax.jit, static_argnames=("model", "compute"), donate_argnames=("rows",))
def decode(
    model: Decoder,
    params: Weights,
    rows: Rows,
    done: Bool[Array, " R"],
    steps: Int[Array, ""],
    enough: Int[Array, ""],
    sampling: Sampling,
    stop_ids: Int[Array, " stops"],
    *,
    compute: Compute,
) -> tuple[Steps, Rows]:
    """Up to `steps` tokens a row, fewer when `enough` rows are done before."""
    size, apart = len(done), model.apart(params)
    nothing = jnp.full((size, STRETCH), -1), jnp.zeros((size, STRETCH), jnp.float32)
    made = Steps(*nothing, done, jnp.int32(0))

    def unfinished(carry: tuple[Steps, Rows]) -> Array:
        made, _ = carry
        return (made.taken < steps) & (jnp.sum(made.done) < enough)

    def step(carry: tuple[Steps, Rows]) -> tuple[Steps, Rows]:
        made, rows = carry
        going = ~made.done
        hidden, cache = model.extend(
            params, rows.last, going, rows.cache, compute=compute, apart=apart
        )
        keys = jax.vmap(jax.random.fold_in)(rows.keys, rows.count)
        logits = sharding.constrain(model.logits(params, hidden), "rows", "vocab")
        token, logp = draw(logits, keys, sampling)
        count = rows.count + going
        ended = (token[:, None] == stop_ids).any(1) | (count >= rows.limit)
        made = Steps(
            made.tokens.at[:, made.taken].set(jnp.where(going, token, -1)),
            made.logps.at[:, made.taken].set(logp),
            made.done | ended,
            made.taken + 1,
        )
        return made, replace(rows, cache=_pin(cache), last=token, count=count)

    made, rows = jax.lax.while_loop(unfinished, step, (made, rows))
    return jax.tree.map(_everywhere, made), rows


def _keys(seeds: UInt32[Array, "R 2"]) -> Key[Array, " R"]:
    return jax.vmap(lambda seed: jax.random.wrap_key_data(seed, impl="threefry2x32"))(seeds)


def _pin(cache: Cache) -> Cache:
    """Keeps a cache's rows and heads where the mesh wants them."""
    axes = ("rows", "kv_heads", None, None)
    k, v = (tuple(sharding.constrain(x, *axes) for x in of) for of in (cache.k, cache.v))
    return replace(cache, k=k, v=v)


def _everywhere(x: Array) -> Array:
    """What the host reads, on every device."""
    return sharding.constrain(x, *(None,) * x.ndim)
