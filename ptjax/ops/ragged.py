"""Attention of one new token a row on TPUs: what a row has filled is read, its token written.

A Pallas kernel of our own. Those of jax, `paged_attention` and `ragged_paged_attention`, take a
head_dim of whole lanes and slots before it: a token is then written by a scatter, for which the
compiler turns the whole cache around and back. Here it is written where it is read.

The work is a list, known on the device: the blocks of slots that each row's token sees, row after
row, and no block of a row that has ended. The grid is as long as the list, so what is not seen is
neither fetched nor counted.

Shapes: R rows, K key heads, G query heads a key head, E head_dim, S slots in blocks of B, N blocks
of all rows.
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
"""Of keys and values in a block: less, and the time of a turn of the grid is seen."""
_NEVER = float(jnp.finfo(jnp.float32).min)


class _Work(NamedTuple):
    """What the kernel does turn by turn, and which slots each row sees: from low up to its own.

    Attributes:
      row: int32 [N], of each turn.
      block: int32 [N], of each turn.
      low: int32 [R], the first slot that is seen.
      at: int32 [R], the slot of the new token.
      total: int32 [], turns.
    """

    row: Array
    block: Array
    low: Array
    at: Array
    total: Array


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
    """What `ops.decode.extended` gives, on one device.

    The token is the first that the running softmax meets, then those of the cache in order.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu

    rows, heads, group, width = q.shape
    slots, interpret = k.shape[3], platform() != "tpu"
    cores = 1 if interpret else tpu.get_tpu_info().num_cores
    parts = cores if heads % cores == 0 else 1
    heads //= parts
    size = _block(slots, 2 * heads * width * k.dtype.itemsize)
    work = _work(at, going, window, slots, size)

    def of_row(*shape: int) -> Any:
        return pl.BlockSpec(
            (1, heads, *shape), lambda part, n, row, *_: (row[n], part) + (0,) * len(shape)
        )

    def seen(part: Array, n: Array, row: Any, block: Any, *_: Any) -> tuple[Any, ...]:
        return row[n], part, 0, block[n]

    def written(part: Array, n: Array, row: Any, block: Any, low: Any, at: Any) -> tuple[Any, ...]:
        return row[n], part, 0, jnp.minimum(at[row[n]], slots - 1) // LANES

    cache = pl.BlockSpec((1, heads, width, size), seen)
    tile = pl.BlockSpec((1, heads, width, LANES), written)
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    count = len(work) - 1
    out, k, v = pl.pallas_call(
        functools.partial(_kernel, scale=scale, softcap=softcap, slots=slots),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=count,
            grid=(parts, work.total),
            in_specs=[of_row(group, width), of_row(1, width), of_row(1, width), cache, cache],
            out_specs=[of_row(group, width), tile, tile],
            scratch_shapes=[
                tpu.VMEM((heads, group, 1), jnp.float32),
                tpu.VMEM((heads, group, 1), jnp.float32),
                tpu.VMEM((heads, group, width), jnp.float32),
            ],
        ),
        out_shape=like,
        input_output_aliases={count: 0, count + 3: 1, count + 4: 2},
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="ragged_decode",
        interpret=interpret,
    )(*work[:-1], q, new_k[:, :, None], new_v[:, :, None], k, v)
    return out, k, v


def _kernel(
    row: Any,
    block: Any,
    low: Any,
    at: Any,
    q: Any,
    new_k: Any,
    new_v: Any,
    k: Any,
    v: Any,
    out: Any,
    k_out: Any,
    v_out: Any,
    most: Any,
    total: Any,
    mixed: Any,
    *,
    scale: float,
    softcap: float | None,
    slots: int,
) -> None:
    """One block of one row: its part of the running softmax; of the last one the result."""
    from jax.experimental import pallas as pl

    n = pl.program_id(1)
    size = k.shape[3]
    first, own = low[row[n]], at[row[n]]
    last = jnp.minimum(own, slots - 1)

    def capped(scores: Array) -> Array:
        scores = scale * scores
        return scores if softcap is None else softcap * jnp.tanh(scores / softcap)

    @pl.when(block[n] == first // size)
    def _begin() -> None:
        there = q[0].astype(jnp.float32) * new_k[0].astype(jnp.float32)
        most[...] = capped(jnp.sum(there, axis=-1, keepdims=True))
        total[...] = jnp.ones_like(total)
        mixed[...] = jnp.broadcast_to(new_v[0].astype(jnp.float32), mixed.shape)

    scores = capped(_product(q[0], k[0], ((2,), (1,))))
    slot = block[n] * size + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2)
    scores = jnp.where((slot >= first) & (slot < own), scores, _NEVER)
    before, now = most[...], jnp.maximum(most[...], jnp.max(scores, axis=-1, keepdims=True))
    kept, shares = jnp.exp(before - now), jnp.exp(scores - now)
    most[...] = now
    total[...] = kept * total[...] + jnp.sum(shares, axis=-1, keepdims=True)
    mixed[...] = kept * mixed[...] + _product(shares.astype(v.dtype), v[0], ((2,), (2,)))

    @pl.when(block[n] == last // size)
    def _end() -> None:
        out[0] = (mixed[...] / total[...]).astype(out.dtype)
        begins = pl.multiple_of(last % size // LANES * LANES, LANES)
        for new, old, to in ((new_k, k, k_out), (new_v, v, v_out)):
            tile = old[0, :, :, pl.ds(begins, LANES)]
            lane = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 2)
            turned = jnp.broadcast_to(new[0], (len(tile), LANES, tile.shape[1]))
            here = last // LANES * LANES + lane == own
            to[0] = jnp.where(here, turned.swapaxes(1, 2), tile)


def _product(x: Array, y: Array, over: tuple[tuple[int], tuple[int]]) -> Array:
    """Of each head."""
    dims = (over, ((0,), (0,)))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _block(slots: int, size: int) -> int:
    """Slots of a block, where one takes `size` bytes."""
    block = LANES
    while 2 * block <= _LARGEST and slots % (2 * block) == 0 and 2 * block * size <= _BYTES:
        block *= 2
    return block


def _work(at: Array, going: Array, window: Array, slots: int, size: int) -> _Work:
    """The first row is always there: a grid without turns is none."""
    rows = len(at)
    low = jnp.maximum(at - window + 1, 0)
    first, last = low // size, jnp.minimum(at, slots - 1) // size
    count = jnp.where(going.at[0].set(True), last - first + 1, 0)
    ends = jnp.cumsum(count)
    turn = jnp.arange(rows * (slots // size), dtype=jnp.int32)
    row = jnp.minimum(jnp.sum(ends <= turn[:, None], axis=1, dtype=jnp.int32), rows - 1)
    block = turn - (ends - count)[row] + first[row]
    return _Work(row, block, low, at, ends[-1])
