"""Parameters and a batch -> Outputs: packing, the model and its heads, below every loss.

Shapes: B prompts, N completions, T tokens; S batch shards; R rows, L tokens a row, D embed; M = L ·
R/S tokens and K = N · B/S sequences of a shard. Where rows are cut along their length into P parts,
P devices have a shard's tokens: S·P and M/P; columns stay whole.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ptjax import sharding
from ptjax.errors import UserError, did_you_mean
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.ops.divergence import Divergence, Teacher
from ptjax.ops.logprobs import FIELDS
from ptjax.ops.pooling import POOLINGS, pool
from ptjax.ops.span import Span, run_starts
from ptjax.types import Batch, Outputs, Weights

COLUMNS = ("tokens", "valid", "mask", "pack", "teacher_hidden")
"""The columns that a forward pass reads."""


@dataclass(frozen=True)
class ForwardOptions:
    """How a forward pass runs, whatever the loss.

    Attributes:
      compute: dtype, remat and dropout of the model.
      head_chunk: tokens of a shard whose logits exist at one time.
      neftune: α of NEFTune (2310.05914): noise U(-1, 1) · α / √(T·D) on the embeddings in training,
        T the sample's own length (on a prompt that stands once, that of its first answer); 0 for
        none.
      temperature: logits are divided by it.
      everywhere: what the head says is computed for every token but a sequence's first, not for
        those alone where `mask` is not 0.
      prompts_once: whether packed rows may hold an example's prompt once, see
        `ptjax.data.columns.left_out`; False is quicker where none does.
      pooling: how `embedding` is made of a sequence's hidden states: `last` valid token, or `mean`
        over the valid ones.
      divergence: which, where there is a teacher; the temperature divides its logits too.
    """

    compute: Compute = field(default_factory=Compute)
    head_chunk: int = 512
    neftune: float = 0.0
    temperature: float = 1.0
    everywhere: bool = False
    prompts_once: bool = True
    pooling: str = "last"
    divergence: Divergence = Divergence()

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            hint = did_you_mean(self.pooling, POOLINGS)
            raise UserError(f"pooling: {self.pooling!r} is none of {', '.join(POOLINGS)}{hint}")


def forward(
    model: Decoder,
    params: Weights,
    batch: Batch,
    *,
    fields: tuple[str, ...] = ("logps",),
    options: ForwardOptions = ForwardOptions(),
    key: Array | None = None,
    linear: Float[Array, "B N T"] | None = None,
    teacher: Teacher | None = None,
) -> Outputs:
    """One forward pass over a batch, packed or not.

    Args:
      model: the decoder.
      params: all leaves, trainable and frozen.
      batch: columns `tokens`, `valid`, `mask`, `pack` where rows are packed, `teacher_hidden` for
        `divergence`.
      fields: which fields of `Outputs` to compute; a head that none of them needs is not computed.
      options: dtype, remat, chunk of the head, noise, pooling.
      key: randomness of dropout and noise; None for evaluation.
      linear: token weights in which the loss is linear, see `ops.logprobs.token_stats`.
      teacher: the output projection of the model whose hidden states the batch holds.

    Returns:
      The fields asked for, float32 but for `hidden`.

    Raises:
      UserError: a field that needs a head, or hidden states, that the model has not.
    """
    rows = _Rows(batch)
    valid = batch["valid"]
    positions = jnp.maximum(jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1, 0)
    span = rows.span(valid, rows.gather(positions), options.prompts_once)
    tokens = rows.gather(batch["tokens"])
    noise = None
    if options.neftune and key is not None:
        lengths = jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1)
        width = options.neftune / jnp.sqrt(lengths * model.config.embed)
        noise = rows.gather(jnp.where(valid, width, 0.0))
    found: dict[str, Any] = {}
    if "routing" in fields:
        hidden, found["routing"] = model.routed(
            params, tokens, span, compute=options.compute, key=key, noise=noise
        )
    else:
        hidden = model.hidden(params, tokens, span, compute=options.compute, key=key, noise=noise)
    scored = behind_first(valid) if options.everywhere else batch["mask"] != 0
    if said := tuple(name for name in fields if name in FIELDS):
        stats = model.stats(
            params,
            rows.by_device(hidden),
            rows.by_device(_next(tokens)),
            rows.by_device(_next(rows.continues(rows.gather(scored))) != 0),
            fields=said,
            temperature=options.temperature,
            chunk=options.head_chunk,
            linear=None if linear is None else rows.by_device(_next(rows.gather(linear))),
        )
        found |= {name: rows.scatter(_previous(rows.by_row(x))) for name, x in stats.items()}
    if "divergence" in fields:
        if teacher is None or "teacher_hidden" not in batch:
            raise UserError("divergence: there is no teacher; set config.reference.source")
        apart = model.divergence(
            params,
            rows.by_device(hidden),
            rows.by_device(rows.gather(batch["teacher_hidden"])),
            rows.by_device(_next(rows.gather(batch["mask"])) != 0),
            teacher,
            divergence=options.divergence,
            temperature=options.temperature,
            chunk=options.head_chunk,
        )
        found["divergence"] = rows.scatter(_previous(rows.by_row(apart)))
    if "hidden" in fields:
        found["hidden"] = jnp.where(valid[..., None], rows.scatter(hidden), 0)
    if "scores" in fields:
        found["scores"] = jnp.where(valid, rows.scatter(model.scores(params, hidden)), 0)
    if "values" in fields:
        seen = hidden
        if "policy_coef" in batch:  # 0 while a value head learns alone: the policy's body stays
            still = jax.lax.stop_gradient(hidden)
            seen = still + jnp.max(batch["policy_coef"]).astype(hidden.dtype) * (hidden - still)
        read = model.values(params, seen, tokens, span, compute=options.compute, key=key)
        # No first token is trained: what stands before another sequence's is never read.
        found["values"] = jnp.where(batch["mask"] != 0, rows.scatter(_previous(read)), 0)
    if "embedding" in fields:
        if hidden.shape[-1] != model.config.embed:
            raise UserError("embedding: the flax module has no `hidden`, it gives logits alone")
        pooled = pool(rows.by_shard(hidden), rows.owners(valid), rows.owned, options.pooling)
        found["embedding"] = pooled.reshape(*valid.shape[:2], -1)
    return Outputs(**found)


def computed(batch: Batch) -> Float[Array, ""]:
    """How many tokens a forward pass computes: a prompt that stands once counts once."""
    there = batch["pack"] >= 0 if "pack" in batch else batch["valid"]
    return jnp.sum(there, dtype=jnp.float32)


def behind_first(valid: Bool[Array, "*B T"]) -> Bool[Array, "*B T"]:
    """The real tokens that have one before them: all but each sequence's first."""
    return valid & (jnp.cumsum(valid, axis=-1, dtype=jnp.int32) > 1)


def last_index(valid: Bool[Array, "*B T"]) -> Int[Array, "*B"]:
    """Where each sequence's last valid token stands; 0 where it has none."""
    places = jnp.arange(valid.shape[-1], dtype=jnp.int32)
    return jnp.max(jnp.where(valid, places, 0), axis=-1)


def last_scores(scores: Float[Array, "*B T"], valid: Bool[Array, "*B T"]) -> Float[Array, "*B"]:
    """Each sequence's score: that of its last valid token; 0 where it has none."""
    return jnp.take_along_axis(scores, last_index(valid)[..., None], axis=-1)[..., 0]


def split(batch: Batch, accumulate: int) -> Batch:
    """Columns [B, ...] -> [accumulate, B/accumulate, ...], without moving rows between devices."""

    def one(x: Array) -> Array:
        return x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    return {name: one(column) for name, column in batch.items()}


def micro_key(key: Array | None, index: Array | int) -> Array | None:
    """The randomness of a step's micro-batch."""
    return None if key is None else jax.random.fold_in(key, index)


def joined(x: Array) -> Array:
    """[accumulate, B/accumulate, ...] -> [B, ...]: undoes `split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def forward_in_parts(
    model: Decoder,
    params: Weights,
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
    return _whole(jnp.pad(x[:, 1:], ((0, 0), (0, 1))))


def _previous(x: Array) -> Array:
    """Entry l holds what stands at l - 1; the first holds zero."""
    return jnp.pad(_whole(x)[:, :-1], ((0, 0), (1, 0)))


def _whole(x: Array) -> Array:
    """[R, L, ...], on each device all of its rows' length."""
    return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))


class _Rows:
    """The map between [B, N, T] and the rows that the model runs on.

    Without packing a row is a sequence. With it, `pack` says for each entry of a row where in its
    shard's flattened [B, N, T] the token stands; gathers and scatters stay within a shard.
    """

    def __init__(self, batch: Batch):
        self.shape = batch["tokens"].shape
        self.shards = sharding.active_parts("batch")
        self.owned = self.shape[0] * self.shape[1] // self.shards
        self.pack: Int[Array, "R L"] | None = batch.get("pack")
        self.rows, self.length = (
            (self.shape[0] * self.shape[1], self.shape[2]) if self.pack is None else self.pack.shape
        )
        self.parts = sharding.active_parts("length")
        if self.length % self.parts:
            raise UserError(
                f"config.mesh.sequence = {self.parts} does not divide rows of {self.length} "
                "tokens; set config.data.row_length, of packed rows, or config.data.max_length and "
                "buckets to multiples of it"
            )

    def by_shard(self, x: Array) -> Array:
        """[R, L, ...] -> [S, M, ...]: rows whole, and together with those of their shard."""
        return _whole(_whole(x).reshape(self.shards, -1, *x.shape[2:]))

    def by_device(self, x: Array) -> Array:
        """[R, L, ...] -> [S·P, M/P, ...]: on each device the tokens that it computes."""
        each = x.shape[2:]
        x = x.reshape(self.shards, -1, self.parts, self.length // self.parts, *each)
        x = x.swapaxes(1, 2).reshape(self.shards * self.parts, -1, *each)
        return sharding.constrain(x, "rows", *(None,) * (x.ndim - 1))

    def gather(self, column: Array) -> Array:
        """[B, N, T, ...] -> [R, L, ...]; padding of packed rows is 0."""
        each = column.shape[3:]
        if self.pack is None:
            return _whole(column.reshape(self.rows, self.length, *each))
        index = self.by_shard(self.pack)
        index = index.reshape(index.shape + (1,) * len(each))
        flat = column.reshape(self.shards, -1, *each)
        taken = jnp.take_along_axis(flat, jnp.maximum(index, 0), axis=1)
        return _whole(jnp.where(index >= 0, taken, 0).reshape(self.rows, self.length, *each))

    def span(
        self, valid: Bool[Array, "B N T"], positions: Int[Array, "R L"], prompts_once: bool
    ) -> Span:
        """Where each entry stands; sequences are numbered from 1, padding is of sequence 0.

        A sequence of which a row holds the end alone shares its beginning with the one that opens
        the run of its example's sequences there.
        """
        if self.pack is None:
            return Span(positions, self.gather(valid).astype(jnp.int32))
        segments = _whole(jnp.where(self.pack < 0, 0, self.pack // self.shape[2] + 1))
        if self.shape[1] == 1 or not prompts_once:
            return Span(positions, segments)
        column = jnp.arange(self.length, dtype=jnp.int32)
        example = jnp.where(segments == 0, -1, (segments - 1) // self.shape[1])
        start = run_starts(segments)
        leads = jnp.take_along_axis(segments, run_starts(example), axis=1)
        begins = jnp.where(segments == 0, 0, positions - (column - start))
        return Span(positions, segments, leads, begins)

    def continues(self, x: Array) -> Array:
        """[R, L], zero at a sequence's first entry: none of its own tokens stands before it."""
        if self.pack is None:
            return x
        of = self.pack // self.shape[2]
        return jnp.where(jnp.pad(of[:, 1:] == of[:, :-1], ((0, 0), (1, 0))), x, 0)

    def owners(self, valid: Bool[Array, "B N T"]) -> Int[Array, "S M"]:
        """Which of its shard's sequences each entry belongs to; `owned` where it is padding."""
        if self.pack is None:
            places = jnp.arange(self.owned * self.length, dtype=jnp.int32)[None]
            return jnp.where(self.by_shard(self.gather(valid)), places // self.length, self.owned)
        return self.by_shard(jnp.where(self.pack < 0, self.owned, self.pack // self.shape[2]))

    def by_row(self, x: Float[Array, "SP MP"]) -> Float[Array, "R L"]:
        """The inverse of `by_device`."""
        x = x.reshape(self.shards, self.parts, -1, self.length // self.parts)
        return x.swapaxes(1, 2).reshape(self.rows, self.length)

    def scatter(self, x: Float[Array, "R L *D"]) -> Float[Array, "B N T *D"]:
        """The inverse of `gather`; 0 where no entry of a row stands for the token."""
        each = x.shape[2:]
        if self.pack is None:
            return x.reshape(*self.shape, *each)
        index = self.by_shard(self.pack)
        size = self.shape[0] * self.shape[1] * self.shape[2] // self.shards
        index = jnp.where(index < 0, size, index)

        def place(index: Array, values: Array) -> Array:
            return jnp.zeros((size, *each), x.dtype).at[index].add(values, mode="drop")

        return jax.vmap(place)(index, self.by_shard(x)).reshape(*self.shape, *each)
