"""`--dry_run`: everything up to the first compiled step, and what it would take."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ptjax.config import Config
from ptjax.data.show import pieces
from ptjax.generate import writer
from ptjax.job import Run, all_rows
from ptjax.prepare import prepare
from ptjax.resuming import outlook
from ptjax.sharding import batch_axes, batch_shards
from ptjax.types import column_dtypes, tree_bytes

_GIB = 2**30


def report(config: Config, workdir: str | None = None) -> str:
    """Builds the run, compiles its largest step, and says what it found; nothing is written.

    Args:
      config: the whole config.
      workdir: where the run would be, if that is known: what is there is looked at too.

    Raises:
      UserError: what the run itself would say.
    """
    run = prepare(config)
    there = [f"workdir    {workdir}: {outlook(run, workdir)}"] if workdir else []
    with jax.set_mesh(run.mesh):
        shapes = max(run.pipeline.shapes, key=lambda s: s.get("pack", s["tokens"]))
        sharding = NamedSharding(run.mesh, PartitionSpec(batch_axes(run.mesh)))
        blocks = batch_shards(run.mesh) * config.accumulate
        parts = 1 if run.rollout is None else run.rollout.minibatches
        once = run.pipeline.examples.prompts_once
        made = shapes | run.staged(shapes)
        staged = all_rows(run.rollout, made, blocks, parts, prompts_once=once)
        dtypes = column_dtypes(config.model.dtype)
        batch = {
            name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtypes[name]), sharding=sharding)
            for name, shape in staged.items()
        }
        memory = (
            run.train_step.lower(run.state, batch, run.teacher(run.state))
            .compile()
            .memory_analysis()
        )
    trained, frozen = run.count(run.state.params), run.count(run.state.frozen)
    found = run.pipeline.report
    slots = math.prod(staged.get("pack", staged["tokens"]))
    used = f"{len(run.pipeline.shapes)} shape(s), {found.efficiency:.1%} of their places used"
    places = f"{round(found.efficiency * slots):,} tokens a step, of {slots:,} places"
    sampling = []
    if run.rollout is not None:
        used = "the largest step, where every answer is as long as it can be"
        places = f"up to {slots:,} places a step"
        sampling = [_sampling(run)]
    lines = [
        f"model      {config.model.source}: {trained + frozen:,} parameters, {trained:,} trained, "
        f"{frozen:,} frozen",
        f"mesh       {dict(run.mesh.shape)} over {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}",
        f"data       {found.examples:,} examples, {found.held_out:,} held out, {found.tokens:,} "
        f"tokens, {found.trained_tokens:,} of them trained, {found.truncated:,} truncated",
        *(f"dropped    {count:,}: {reason}" for reason, count in found.drops.items()),
        f"batches    {', '.join(f'{k} {v}' for k, v in staged.items())}; {used}",
        f"steps      {run.steps:,} ({run.pipeline.steps_per_epoch:,} an epoch), "
        f"{config.accumulate} micro-batch(es) and {places}",
        *sampling,
        f"memory     a device, by XLA: {memory.argument_size_in_bytes / _GIB:.2f} GiB arguments, "
        f"{memory.temp_size_in_bytes / _GIB:.2f} GiB temporaries, "
        f"{memory.alias_size_in_bytes / _GIB:.2f} GiB donated",
        f"state      {tree_bytes(run.abstract) / _GIB:.2f} GiB a checkpoint",
        *there,
        "",
        *examples(next(run.pipeline.train()).columns, run.bundle.tokenizer),
    ]
    return "\n".join(lines)


class Cache(NamedTuple):
    """The keys and values of answers that are written together."""

    rows: int
    slots: int
    size: int
    """Bytes, over all devices."""


def rollout_cache(run: Run) -> Cache:
    """What a rollout takes beside the training state, at most: as the sampler allocates it."""
    rollout, model = run.rollout, run.bundle.model
    assert rollout is not None
    answers = rollout.n * max(shapes["tokens"][0] for shapes in run.pipeline.shapes)
    rows = writer.rows_at_once(min(rollout.rows, answers), run.mesh)
    slots = writer.slots(rollout.longest)

    def keys_and_values() -> tuple[tuple[jax.Array, ...], ...]:
        cache = model.new_cache(rows, slots, rollout.compute.dtype)
        return cache.k, cache.v

    return Cache(rows, slots, tree_bytes(jax.eval_shape(keys_and_values)))


def _sampling(run: Run) -> str:
    rollout, cache = run.rollout, rollout_cache(run)
    assert rollout is not None
    step = 2 * 4 * cache.rows * run.bundle.model.config.vocab
    return (
        f"rollout    {rollout.n} answer(s) a prompt of up to {rollout.max_tokens:,} tokens; "
        f"{cache.rows} rows of {cache.slots:,} places: {cache.size / _GIB:.2f} GiB of keys and "
        "values over all devices, and at most as much again while prompts are read; "
        f"{step / _GIB:.2f} GiB of logits and noise"
    )


def examples(columns: Mapping[str, np.ndarray], tokenizer: Any, count: int = 2) -> list[str]:
    """The first examples of a batch, a line a sequence, what is trained of them in brackets."""
    lines = []
    for row in range(min(count, len(columns["tokens"]))):
        there = np.flatnonzero(columns["valid"][row].any(-1))
        for place, n in enumerate(there, 1):
            which = f" ({place} of {len(there)})" if len(there) > 1 else ""
            text, inside = f"example {row}{which}: ", False
            valid = columns["valid"][row, n]
            tokens, mask = (columns[name][row, n][valid] for name in ("tokens", "mask"))
            for piece, trained in pieces(tokens, mask != 0, tokenizer):
                if trained != inside:
                    text += "]" if inside else "["
                    inside = trained
                text += piece
            lines.append(text + ("]" if inside else ""))
    return lines
