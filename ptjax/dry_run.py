"""`--dry_run`: everything up to the first compiled step, and what it would take."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ptjax.config import Config
from ptjax.prepare import Run, prepare
from ptjax.sharding import BATCH
from ptjax.types import COLUMN_DTYPES, tree_bytes

_GIB = 2**30


def report(config: Config) -> str:
    """Builds the run, compiles its largest step, and says what it found; nothing is written."""
    run = prepare(config)
    with jax.set_mesh(run.mesh):
        shapes = max(run.pipeline.shapes, key=lambda s: s.get("pack", s["tokens"]))
        sharding = NamedSharding(run.mesh, PartitionSpec(BATCH))
        staged = shapes | run.staged(shapes)
        batch = {
            name: jax.ShapeDtypeStruct(shape, jnp.dtype(COLUMN_DTYPES[name]), sharding=sharding)
            for name, shape in staged.items()
        }
        memory = run.train_step.lower(run.state, batch).compile().memory_analysis()
    trained, frozen = run.count(run.state.params), run.count(run.state.frozen)
    found = run.pipeline.report
    slots = math.prod(staged.get("pack", staged["tokens"]))
    used = f"{len(run.pipeline.shapes)} shape(s), {found.efficiency:.1%} of their places used"
    places = f"{round(found.efficiency * slots):,} tokens a step, of {slots:,} places"
    if run.rollout is not None:
        used = "one shape"
        places = f"{slots:,} places a step, answers of up to {run.rollout.max_tokens:,} tokens"
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
        f"memory     a device, by XLA: {memory.argument_size_in_bytes / _GIB:.2f} GiB arguments, "
        f"{memory.temp_size_in_bytes / _GIB:.2f} GiB temporaries, "
        f"{memory.alias_size_in_bytes / _GIB:.2f} GiB donated",
        f"state      {tree_bytes(run.abstract) / _GIB:.2f} GiB a checkpoint",
        "",
        *_examples(run),
    ]
    return "\n".join(lines)


def _examples(run: Run, count: int = 2) -> list[str]:
    """The first sequences of the first batch, what is trained of them in brackets."""
    columns = next(run.pipeline.train()).columns
    lines = []
    for row in range(min(count, columns["tokens"].shape[0])):
        text, inside = f"example {row}: ", False
        for token, valid, mask in zip(
            columns["tokens"][row, 0],
            columns["valid"][row, 0],
            columns["mask"][row, 0],
            strict=True,
        ):
            if not valid:
                continue
            if bool(mask) != inside:
                text += "]" if inside else "["
                inside = bool(mask)
            text += run.bundle.tokenizer.decode([int(token)])
        lines.append(text + ("]" if inside else ""))
    return lines
