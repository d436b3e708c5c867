"""Parameters and a batch -> Outputs: packing, the model and the head, below every loss.

Shapes: B prompts, N completions, T tokens; S batch shards; R rows, L tokens a row, D embed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ptjax import sharding
from ptjax.models.decoder import Compute, Decoder
from ptjax.ops.attention import Span
from ptjax.types import Batch, Outputs

COLUMNS = ("tokens", "valid", "mask", "pack")
"""The columns that a forward pass reads."""


@dataclass(frozen=True)
class ForwardOptions:
    """How a forward pass runs, whatever the loss.

    Attributes:
      compute: dtype, remat and dropout of the model.
      head_chunk: tokens of a shard whose logits exist at one time.
      neftune: α of NEFTune (2310.05914): noise U(-1, 1) · α / √(T·D) on the embeddings in training,
        T the sample's own length; 0 for none.
      temperature: logits are divided by it.
    """

    compute: Compute = field(default_factory=Compute)
    head_chunk: int = 512
    neftune: float = 0.0
    temperature: float = 1.0


def forward(
    model: Decoder,
    params: Mapping[str, Array],
    batch: Batch,
    *,
    fields: tuple[str, ...] = ("logps",),
    options: ForwardOptions = ForwardOptions(),
    key: Array | None = None,
    linear: Float[Array, "B N T"] | None = None,
) -> Outputs:
    """One forward pass over a batch, packed or not.

    Args:
      model: the decoder.
      params: all leaves, trainable and frozen.
      batch: columns `tokens`, `valid`, `mask`, and `pack` where rows are packed.
      fields: which fields of `Outputs` to compute.
      options: dtype, remat, chunk of the head, noise.
      key: randomness of dropout and noise; None for evaluation.
      linear: token weights in which the loss is linear, see `ops.logprobs.token_stats`.

    Returns:
      The fields asked for, [B, N, T] float32, 0 where `mask` is 0.
    """
    rows = _Rows(batch)
    valid = batch["valid"]
    positions = jnp.maximum(jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1, 0)
    span = Span(rows.gather(positions), rows.segments(valid))
    tokens = rows.gather(batch["tokens"])
    noise = None
    if options.neftune and key is not None:
        lengths = jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1)
        width = options.neftune / jnp.sqrt(lengths * model.config.embed)
        noise = rows.gather(jnp.where(valid, width, 0.0))
    hidden = model.hidden(params, tokens, span, compute=options.compute, key=key, noise=noise)
    stats = model.stats(
        params,
        rows.by_shard(hidden),
        rows.by_shard(_next(tokens)),
        rows.by_shard(_next(rows.gather(batch["mask"])) != 0),
        fields=fields,
        temperature=options.temperature,
        chunk=options.head_chunk,
        linear=None if linear is None else rows.by_shard(_next(rows.gather(linear))),
    )
    return Outputs(**{name: rows.scatter(value) for name, value in stats.items()})


def split(batch: Batch, accumulate: int) -> Batch:
    """Columns [B, ...] -> [accumulate, B/accumulate, ...], without moving rows between devices."""

    def one(x: Array) -> Array:
        return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

    return {name: one(column) for name, column in batch.items()}


def joined(x: Array) -> Array:
    """[accumulate, B/accumulate, ...] -> [B, ...]: undoes `split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def forward_in_parts(
    model: Decoder,
    params: Mapping[str, Array],
    batch: Batch,
    *,
    fields: tuple[str, ...],
    accumulate: int,
    options: ForwardOptions,
) -> Outputs:
    """`forward` without a gradient to come, one micro-batch after the other: as much memory."""
    read = {name: batch[name] for name in COLUMNS if name in batch}

    def one(micro: Batch) -> Outputs:
        return forward(model, params, micro, fields=fields, options=options)

    if accumulate == 1:
        return one(read)
    return jax.tree.map(joined, jax.lax.map(one, split(read, accumulate)))


def _next(x: Array) -> Array:
    """Entry l holds what stands at l + 1; the last holds zero."""
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


class _Rows:
    """The map between [B, N, T] and the rows that the model runs on.

    Without packing a row is a sequence. With it, `pack` says for each entry of a row where in its
    shard's flattened [B, N, T] the token stands; gathers and scatters stay within a shard.
    """

    def __init__(self, batch: Batch):
        self.shape = batch["tokens"].shape
        self.shards = sharding.active_batch_shards()
        self.pack: Int[Array, "R L"] | None = batch.get("pack")
        self.rows, self.length = (
            (self.shape[0] * self.shape[1], self.shape[2]) if self.pack is None else self.pack.shape
        )

    def by_shard(self, x: Array) -> Array:
        """[R, L, ...] -> [S, R/S · L, ...]."""
        x = x.reshape(self.shards, -1, *x.shape[2:])
        return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

    def gather(self, column: Array) -> Array:
        """[B, N, T] -> [R, L]; padding of packed rows is 0."""
        if self.pack is None:
            return column.reshape(self.rows, self.length)
        index = self.by_shard(self.pack)
        flat = column.reshape(self.shards, -1)
        taken = jnp.take_along_axis(flat, jnp.maximum(index, 0), axis=1)
        return jnp.where(index >= 0, taken, 0).reshape(self.rows, self.length)

    def segments(self, valid: Bool[Array, "B N T"]) -> Int[Array, "R L"]:
        """Which sequence each entry belongs to, from 1; 0 for padding."""
        if self.pack is None:
            return valid.reshape(self.rows, self.length).astype(jnp.int32)
        return jnp.where(self.pack < 0, 0, self.pack // self.shape[2] + 1)

    def scatter(self, x: Float[Array, "S M"]) -> Float[Array, "B N T"]:
        """Statistics at the states that predict -> [B, N, T] at the tokens that are predicted."""
        moved = jnp.pad(x.reshape(self.rows, self.length)[:, :-1], ((0, 0), (1, 0)))
        if self.pack is None:
            return moved.reshape(self.shape)
        index = self.by_shard(self.pack)
        size = self.shape[0] * self.shape[1] * self.shape[2] // self.shards
        index = jnp.where(index < 0, size, index)

        def place(index: Array, values: Array) -> Array:
            return jnp.zeros(size, jnp.float32).at[index].add(values, mode="drop")

        return jax.vmap(place)(index, self.by_shard(moved)).reshape(self.shape)
