"""The programs that a run would compile, each with the shapes of its arguments."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ptjax import sharding
from ptjax.flops import FlopCounter, Seen
from ptjax.forward import COLUMNS
from ptjax.generate import steps, writer
from ptjax.generate.sampling import Sampling
from ptjax.job import all_rows, staged
from ptjax.models.decoder import Decoder
from ptjax.ops.divergence import Teacher
from ptjax.passes import compute, router_aux
from ptjax.plan.batches import Shapes, columns, places
from ptjax.plan.shapes import Job, batch
from ptjax.stages.rollout import Sizes

_FIELDS = {"old_entropy": "entropy", "old_values": "values", "teacher_hidden": "hidden"}
"""Column that a stage writes -> field of Outputs that it asks beside the log-probs, or for them."""


@dataclass(frozen=True)
class Planned:
    """One program of a run.

    Attributes:
      name: for the page.
      when: how often it runs.
      jitted: the function.
      args: its arguments, as shapes.
      kwargs: those by name.
      flops: model flops of one run of it, over all devices; of a loop of one turn.
      again: those that a backward pass computes a second time.
      donated: what of its arguments its results take over.
      cache: keys and values among its arguments and results.
      stays: results that are their arguments but for what a token adds.
      beside: what lies on the devices while it runs, beside the run's state and its arguments.
      chunks: of the output projection, at most: where every token of a device is asked about.
      layers: that a backward pass goes back through; 0 where there is none.
    """

    name: str
    when: str
    jitted: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flops: float
    again: float = 0.0
    donated: Any = ()
    cache: Any = ()
    stays: Any = ()
    beside: Any = ()
    chunks: int = 1
    layers: int = 0


def programs(job: Job) -> list[Planned]:
    """All programs of a run, in the order in which it needs them."""
    counter = _counter(job)
    return [
        *_sampling(job, counter),
        *_passes(job, counter),
        _train(job, counter),
        *_evaluate(job, counter),
    ]


def answers(job: Job) -> list[Planned]:
    """Those that write a rollout; none of a method that learns from data."""
    return [] if job.rollout is None else list(_sampling(job, _counter(job)))


def train(job: Job) -> Planned:
    """The optimizer step alone."""
    return _train(job, _counter(job))


def _counter(job: Job) -> FlopCounter:
    return FlopCounter(job.model, job.rows, job.state, job.bound)


def resident(job: Job) -> dict[str, Any]:
    """What lies on the devices as long as the run lasts, by what it is."""
    state = job.state
    return {
        "trained parameters": state.params,
        "frozen parameters": state.frozen,
        "optimizer": state.opt_state,
        "moving average": state.ema,
        "reference": job.own if job.config.reference.mode == "live" else {},
        "stages": state.carry,
    }


def _train(job: Job, counter: FlopCounter) -> Planned:
    seen = _seen(job, job.step)
    updates = 1 if job.rollout is None else job.rollout.updates
    again = counter.again(seen, job.config.model.remat)
    if job.config.accumulate > 1 and router_aux(job.config, job.model):
        again += counter.forward(seen._replace(head_tokens=0))
    return Planned(
        "train step",
        "an optimizer step" if updates == 1 else f"an optimizer step, {updates} a rollout",
        job.passes.train,
        (job.state, batch(job.step, job.mesh, job.config.model.dtype), _teacher(job)),
        {},
        flops=counter.train(seen),
        again=again,
        donated=job.state,
        chunks=_chunks(job, job.step),
        layers=job.model.config.layers,
    )


def _evaluate(job: Job, counter: FlopCounter) -> Iterator[Planned]:
    """Where data are held out: a batch of them, one answer a prompt where groups are sampled."""
    if job.config.data.validation is None:
        return
    shapes = job.whole
    if job.rollout is not None:
        shards = sharding.batch_shards(job.mesh)
        data = columns(job.config, job.bound.algorithm.data, shards=shards).shapes
        embed = job.reference[0].config.embed if job.reference else None
        added = staged(job.bound.held_out, replace(job.rollout, n=1), embed, data)
        blocks = shards * job.config.accumulate
        shapes = all_rows(job.rollout, data | added, blocks, prompts_once=False)
    yield Planned(
        "evaluation",
        "a held-out batch",
        job.passes.evaluate,
        (job.state.merged(), batch(shapes, job.mesh, job.config.model.dtype), _teacher(job)),
        {},
        flops=counter.forward(_seen(job, shapes)) if job.bound.judged.needs else 0.0,
        chunks=_chunks(job, shapes),
    )


def _passes(job: Job, counter: FlopCounter) -> Iterator[Planned]:
    """Forward passes that stages make over a whole batch, of the reference and of the policy."""
    once = "a batch" if job.rollout is None else "a rollout"
    read = {name: job.whole[name] for name in COLUMNS if name in job.whole}
    read.pop("teacher_hidden", None)  # what a pass is to make
    given = batch(read, job.mesh, job.config.model.dtype)
    flops = counter.forward(_seen(job, job.whole))
    asking = [stage for stage in job.bound.stages if stage.passes]

    def fields(stages: list[Any]) -> tuple[str, ...]:
        asked = {_FIELDS.get(name, "logps") for stage in stages for name in stage.writes}
        return tuple(sorted(asked)) or ("logps",)

    if job.reference is not None and (of_reference := [s for s in asking if s.reference]):
        yield Planned(
            "reference pass",
            once,
            job.reference_pass,
            (job.reference[1], given),
            {"fields": fields(of_reference)},
            flops=flops,
            chunks=_chunks(job, job.whole),
        )
    others = int(job.reference is not None)  # a reference that follows the policy is run as it is
    if of_policy := [s for s in asking if s.passes > others * s.reference]:
        yield Planned(
            "policy pass",
            once,
            job.passes.policy,
            (job.state.merged(), given),
            {"fields": fields(of_policy)},
            flops=flops,
            chunks=_chunks(job, job.whole),
        )


def _sampling(job: Job, counter: FlopCounter) -> Iterator[Planned]:
    """How answers are written, and, where groups are, the one to each held-out prompt."""
    if job.rollout is None:
        return
    yield from _writing(job, counter, job.rollout, job.rollout.n)
    if job.config.data.validation is not None and job.rollout.n > 1:
        for one in _writing(job, counter, job.rollout, 1):
            yield replace(one, name=f"{one.name}, held out")


def _writing(job: Job, counter: FlopCounter, rollout: Sizes, n: int) -> Iterator[Planned]:
    """Prompts are read, rows are given away, all rows decode together."""
    config, prompts = job.config, job.whole["tokens"][0]
    size, together = writer.rows_and_prompts(rollout.rows, n, prompts, job.mesh)
    prompt, room = config.data.max_length, job.model.config.max_positions
    longest = min(prompt + rollout.max_tokens, room)
    read, slots = writer.places_of(prompt), writer.slots(longest)
    params, how = job.state.merged(), compute(config)
    at = NamedSharding(job.mesh, PartitionSpec(sharding.batch_axes(job.mesh)))

    def row(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=at)

    rows = _rows(job.model, size, slots, how.dtype, job.mesh)
    cache = _rows(job.model, together, read, how.dtype, job.mesh).cache
    yield Planned(
        "prefill",
        f"{together} prompts",
        steps.prefill,
        (job.model, params, row(jnp.int32, together, read), row(jnp.int32, together)),
        {"compute": how},
        flops=counter.forward(Seen(together * read, together * read * (read + 1) // 2, 0)),
        cache=cache,
        # Rows are there before the first prompt is read, and what was read until it is replaced.
        beside=(rows, cache if together < prompts else ()),
    )
    which = row(jnp.int32, size)
    yield Planned(
        "admit",
        "answers that begin",
        steps.admit,
        (rows, cache, which, which, row(jnp.uint32, size, 2), which),
        {},
        flops=0.0,
        donated=rows,
        cache=(rows.cache, cache),
    )
    sampling = Sampling(rollout.temperature or None, config.rollout.top_k, config.rollout.top_p)
    yield Planned(
        "decode",
        f"a token of {size} answers",
        steps.decode,
        (
            job.model,
            params,
            rows,
            row(jnp.bool_, size),
            np.int32(1),
            np.int32(size),
            sampling,
            np.zeros(2, np.int32),
        ),
        {"compute": how},
        flops=counter.forward(Seen(size, size * slots, size)),
        donated=rows,
        cache=(rows.cache, cache),
        stays=rows.cache,
        beside=cache,
    )


def _rows(model: Decoder, size: int, slots: int, dtype: str, mesh: Mesh) -> steps.Rows:
    """Answers in flight, as shapes: rows and heads of the cache lie as the rules say."""
    at = NamedSharding(mesh, PartitionSpec(sharding.batch_axes(mesh)))

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        axes = ("rows", "kv_heads", "head_dim", "slots")
        where = sharding.named(axes, leaf.shape, mesh) if leaf.ndim == len(axes) else at
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    with jax.set_mesh(mesh):
        found = jax.eval_shape(lambda: steps.begin(model, size, slots, dtype))
    return jax.tree.map(place, found)


def _teacher(job: Job) -> Teacher | None:
    """What the policy learns from by hidden states, where its loss asks for that."""
    if "divergence" not in job.bound.needs or job.reference is None:
        return None
    model, leaves = job.reference
    tied = model.config.tied
    return Teacher(leaves["embed" if tied else "head"], tied, model.config.logit_softcap)


def _chunks(job: Job, shapes: Shapes) -> int:
    """Of a micro-batch's tokens on a device."""
    tokens = places(shapes) // (job.config.accumulate * sharding.row_shards(job.mesh))
    return -(-tokens // job.config.model.head_chunk)


def _seen(job: Job, shapes: Shapes) -> Seen:
    """At most: every place holds a token, and every row one sequence."""
    tokens, length = places(shapes), shapes["tokens"][-1]
    scored = tokens
    if job.rollout is not None:
        scored = min(tokens, int(np.prod(shapes["tokens"][:2])) * job.rollout.max_tokens)
    return Seen(tokens, tokens * (length + 1) // 2, scored)
