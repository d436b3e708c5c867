"""Attention of one new token a row on TPUs: what a row sees is read, and its token written there.

A Pallas kernel of our own. Those of jax (`paged_attention`, `ragged_paged_attention`) take a
head_dim of whole lanes, and tokens that another operation has written: a scatter, for which the
compiler turns the whole cache around and back. This one takes any head_dim, window and dtype, and
writes the tile of its row that holds the token.

Its work is a list made on the device: the blocks of slots that each row's token sees, row after
row, none of a row that has ended. The grid is as long as the list, so nothing else is fetched.

Shapes: R rows, K key heads, G query heads a key head, E head_dim, S slots in blocks of B, N blocks
of all rows at most.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ptjax.sharding import platform

LANES = 128
"""Slots of a row are a multiple of it, and so many are written at once."""
_LARGEST = 512
_BYTES = 2**20
"""Of keys and values in a block, at most: with fewer, turns of the grid take longer than they."""
_NEVER = float(jnp.finfo(jnp.float32).min)


class Turns(NamedTuple):
    """What the grid runs over, and what each row sees; on the core that steers the others.

    Attributes:
      row: int32 [N], of each turn.
      block: int32 [N], of its slots.
      low: int32 [R], the first slot that the row's token sees.
      own: int32 [R], the token's slot.
    """

    row: Any
    block: Any
    low: Any
    own: Any


class _Running(NamedTuple):
    """A softmax over the slots met so far, of each head: float32 [K, G, 1], [K, G, 1], [K, G, E].

    Attributes:
      most: the largest score.
      total: Σ exp(score - most).
      mixed: Σ exp(score - most) · value.
    """

    most: Any
    total: Any
    mixed: Any


def ragged(
    q: Float[Array, "R K G E"],
    new_k: Float[Array, "R K E"],
    new_v: Float[Array, "R K E"],
    k: Float[Array, "R K E S"],
    v: Float[Array, "R K E S"],
    at: Int[Array, " R"],
    going: Bool[Array, " R"],
    window: Int[Array, ""],
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Array, "R K G E"], Float[Array, "R K E S"], Float[Array, "R K E S"]]:
    """What `ops.decode.extended` says, on one device; rows that do not go get their queries."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu

    _, heads, group, width = q.shape
    slots, interpret = k.shape[3], platform() != "tpu"
    cores = 1 if interpret else tpu.get_tpu_info().num_cores
    parts = _parts(heads, cores, 2 * width * k.dtype.itemsize)
    heads //= parts
    size = _block(slots, 2 * heads * width * k.dtype.itemsize)
    turns, count = listed(at, going, window, slots, size)

    def whole(*shape: int) -> Any:
        return pl.BlockSpec((1, heads, *shape), lambda part, n, turns: (turns.row[n], part, 0, 0))

    def read(part: Any, n: Any, turns: Turns) -> tuple[Any, ...]:
        return turns.row[n], part, 0, turns.block[n]

    def written(part: Any, n: Any, turns: Turns) -> tuple[Any, ...]:
        row = turns.row[n]
        return row, part, 0, jnp.minimum(turns.own[row], slots - 1) // LANES

    block = pl.BlockSpec((1, heads, width, size), read)
    tile = pl.BlockSpec((1, heads, width, LANES), written)
    queries, token = whole(group, width), whole(1, width)
    first = len(turns)
    out, (k, v) = pl.pallas_call(
        functools.partial(_kernel, scale=scale, softcap=softcap, slots=slots),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(parts, count),
            in_specs=[queries, (token, token), (block, block)],
            out_specs=[queries, (tile, tile)],
            scratch_shapes=[
                _Running(
                    *(tpu.VMEM((heads, group, last), jnp.float32) for last in (1, 1, width)),
                )
            ],
        ),
        out_shape=[_like(q), (_like(k), _like(v))],
        input_output_aliases={first: 0, first + 3: 1, first + 4: 2},
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="ragged_decode",
        interpret=interpret,
    )(turns, q, (new_k[:, :, None], new_v[:, :, None]), (k, v))
    return out, k, v


def _kernel(
    turns: Turns,
    q: Any,
    new: tuple[Any, Any],
    cache: tuple[Any, Any],
    out: Any,
    kept: tuple[Any, Any],
    running: _Running,
    *,
    scale: float,
    softcap: float | None,
    slots: int,
) -> None:
    """A block of a row: the softmax goes on; behind the last the result and the token are written.

    The softmax begins with the token itself, so it is never empty.
    """
    from jax.experimental import pallas as pl

    n, size = pl.program_id(1), cache[0].shape[3]
    block, row = turns.block[n], turns.row[n]
    low, own = turns.low[row], turns.own[row]
    last = jnp.minimum(own, slots - 1)

    def capped(scores: Array) -> Array:
        scores = scale * scores
        return scores if softcap is None else softcap * jnp.tanh(scores / softcap)

    @pl.when(block == low // size)
    def _begin() -> None:
        queries, key, value = (x[0].astype(jnp.float32) for x in (q, *new))
        running.most[...] = capped(jnp.sum(queries * key, axis=-1, keepdims=True))
        running.total[...] = jnp.ones_like(running.total)
        running.mixed[...] = jnp.broadcast_to(value, running.mixed.shape)

    keys, values = (x[0] for x in cache)
    scores = capped(_product(q[0], keys, 1))
    slot = block * size + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2)
    scores = jnp.where((slot >= low) & (slot < own), scores, _NEVER)
    most = jnp.maximum(running.most[...], jnp.max(scores, axis=-1, keepdims=True))
    share, before = jnp.exp(scores - most), jnp.exp(running.most[...] - most)
    running.most[...] = most
    running.total[...] = before * running.total[...] + jnp.sum(share, axis=-1, keepdims=True)
    mixed = _product(share.astype(values.dtype), values, 2)
    running.mixed[...] = before * running.mixed[...] + mixed

    @pl.when(block == last // size)
    def _end() -> None:
        out[0] = (running.mixed[...] / running.total[...]).astype(out.dtype)
        begins = last // LANES * LANES
        inside = pl.ds(pl.multiple_of(begins % size, LANES), LANES)
        for token, old, to in zip(new, cache, kept, strict=True):
            tile = old[0, :, :, inside]
            slot = begins + jax.lax.broadcasted_iota(jnp.int32, tile.shape, 2)
            token = jnp.broadcast_to(token[0], (len(tile), LANES, tile.shape[1]))
            to[0] = jnp.where(slot == own, token.swapaxes(1, 2).astype(tile.dtype), tile)


def _product(x: Array, y: Array, axis: int) -> Array:
    """Of each head, over the last axis of x and this one of y."""
    dims = (((2,), (axis,)), ((0,), (0,)))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _parts(heads: int, cores: int, size: int) -> int:
    """Into how many parts heads are cut, where one's slot takes `size` bytes.

    A chip may be two cores with one memory: each then has heads of its own.
    """
    parts = [part for part in range(1, heads + 1) if heads % part == 0]
    small = [part for part in parts if heads // part * size * LANES <= 2 * _BYTES] or [heads]
    return next((part for part in small if part % cores == 0), small[0])


def _block(slots: int, size: int) -> int:
    """Slots of a block, where one takes `size` bytes."""
    block = LANES
    while 2 * block <= _LARGEST and slots % (2 * block) == 0 and 2 * block * size <= _BYTES:
        block *= 2
    return block


def listed(
    at: Int[Array, " R"], going: Bool[Array, " R"], window: Int[Array, ""], slots: int, size: int
) -> tuple[Turns, Int[Array, ""]]:
    """What there is to do, and how many turns that takes; see `ragged`.

    The first row is always among it, going or not: a grid has a turn at least.

    Args:
      at: each row's own slot.
      going: rows that have a token.
      window: slots that it sees, its own included.
      slots: of a row.
      size: of a block.
    """
    rows, last = len(at), jnp.minimum(at, slots - 1)
    low = jnp.maximum(last - window + 1, 0)
    first = low // size
    blocks = jnp.where(going.at[0].set(True), last // size - first + 1, 0)
    ends = jnp.cumsum(blocks)
    turn = jnp.arange(rows * (slots // size), dtype=jnp.int32)
    row = jnp.minimum(jnp.searchsorted(ends, turn, side="right", method="compare_all"), rows - 1)
    return Turns(row, first[row] + turn - (ends - blocks)[row], low, at), ends[-1]
