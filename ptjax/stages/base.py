"""A stage adds columns to a batch before the loss sees it: log-probs, statistics, own answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ptjax.data import HostBatch
from ptjax.models.decoder import Decoder
from ptjax.sharding import put_batch
from ptjax.stages.rollout import Rollout
from ptjax.types import Batch, Outputs, Params

Carry = Any
"""What a stage remembers from step to step: a pytree of arrays, kept in checkpoints."""


GROUP = -1
"""As many sequences a prompt as `config.rollout.n` says."""


@dataclass(frozen=True)
class Stage:
    """One stage of an algorithm.

    Attributes:
      name: under which its carry is kept.
      run: `(Context, Batch, carry, *, hyperparameters) -> (Batch, carry)`, called on the host with
        arrays on the device, before every step and, its carry then forgotten, before every
        held-out batch. What it computes with the model goes through the context's jitted passes.
      writes: the columns it adds: name -> axes, of `B N T`, and `E`, the reference's width.
      reference: whether it asks the reference model anything.
      passes: forward passes that it makes over as many tokens as the batch has: what it costs.
      wanted: of the hyperparameters: whether they need the stage at all; None for always.
      begin: the carry before the first step, of the trained leaves; None where there is none.
      sequences: N of the sequences that it writes in the place of the data's; 0: it leaves those;
        `GROUP`: `config.rollout.n`, sampled at the temperature at which the loss scores them.
      judged: whether it asks rewards about them.
      compares: of the hyperparameters: whether it tells a prompt's answers apart, so that one alone
        teaches nothing; None for no.
      measures: of the scalars that it logs, those measured on held-out data too.
    """

    name: str
    run: Callable[..., tuple[Batch, Carry]]
    writes: Mapping[str, str] = field(default_factory=dict)
    reference: bool = False
    passes: int = 0
    wanted: Callable[..., bool] | None = None
    begin: Callable[[Params], Carry] | None = None
    sequences: int = 0
    judged: bool = False
    compares: Callable[..., bool] | None = None
    measures: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Context:
    """What a stage may use of the run.

    Attributes:
      step: optimizer steps taken so far.
      training: False before a held-out batch.
      trained: the trained leaves, as they stand.
      policy: `(Batch, fields) -> Outputs` of the model as it stands, without gradient.
      reference: the same of the reference model; given `trained=`, its leaves in the place of the
        reference's own.
      model: `() -> (model, all leaves)` of the policy; with `reference=True` and, as above,
        `trained=` of the reference.
      mesh: where batches lie.
      host: the batch on the host; where a stage writes sequences, all its rows in every process.
        Such a stage writes them here too, for what counts tokens.
      rollout: how answers are sampled and judged, where a stage writes sequences.
      carry: by stage name, what stages remember; those that ran before have brought theirs up to
        date.
      more: the next prompts of the data, for a stage that needs more than a batch holds; gives
        None where the data are at their end.
      logged: scalars to log with the step; a stage adds to them.
      counted: of those that are means over something else than the batch's examples: how many.
      table: what was sampled, a row an answer; a stage adds to it.
    """

    step: int
    training: bool
    trained: Params
    policy: Callable[[Batch, tuple[str, ...]], Outputs]
    reference: Callable[..., Outputs]
    model: Callable[..., tuple[Decoder, Params]]
    mesh: Mesh
    host: HostBatch | None = None
    rollout: Rollout | None = None
    more: Callable[[], HostBatch | None] | None = None
    carry: dict[str, Carry] = field(default_factory=dict)
    logged: dict[str, Any] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)


def in_place(ctx: Context, batch: Batch, made: Mapping[str, np.ndarray]) -> Batch:
    """The batch with these columns for its own, on the device and on the host."""
    assert ctx.host is not None
    ctx.host.columns.update(made)
    return batch | put_batch(made, ctx.mesh, whole=True)


def without_truncated(ctx: Context, batch: Batch) -> Batch:
    """Training answers that ran out of room with weight 0; held-out ones are judged as they are."""
    if not ctx.training:
        return batch
    return batch | {"weights": batch["weights"] * (1 - batch["truncated"])}


def run_stages(
    stages: tuple[Stage, ...],
    call: Callable[..., tuple[Batch, Carry]],
    context: Context,
    batch: Batch,
) -> Batch:
    """Runs the stages in order; one whose columns are all there already is passed over.

    Args:
      stages: those that the hyperparameters want.
      call: `(function, Context, Batch, carry) -> (Batch, carry)`: gives it its hyperparameters.
      context: of the run; its carry is brought up to date.
      batch: columns as they came from the data.
    """
    for stage in stages:
        there = all(name in batch for name in stage.writes)
        if stage.writes and there and not stage.sequences:
            continue
        batch, remembered = call(stage.run, context, batch, context.carry.get(stage.name))
        if stage.begin is not None:
            context.carry[stage.name] = remembered
    return batch
