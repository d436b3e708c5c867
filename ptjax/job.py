"""Everything that a run's loop uses: the model, the data, the state, the jitted passes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ptjax import data
from ptjax.algorithms.base import Bound, known_call
from ptjax.buckets import bucket
from ptjax.config import Config
from ptjax.data import HostBatch
from ptjax.data.pack_groups import whole_group
from ptjax.models.bundle import Bundle
from ptjax.models.decoder import Decoder
from ptjax.models.spec import Param
from ptjax.ops.divergence import Teacher
from ptjax.reference import Reference
from ptjax.stages.base import GROUP, Context, Stage, run_stages
from ptjax.stages.rollout import Rollout, Sizes
from ptjax.types import Batch, Outputs, Params, TrainState, column_dtypes

BUFFER = "buffer"
"""Under this name the carry holds a rollout of which parts are still to be trained on."""


class Staged(NamedTuple):
    """A batch after its stages."""

    batch: Batch
    carry: dict[str, Any]
    logged: dict[str, Any] = {}
    table: list[dict[str, Any]] = []
    counted: dict[str, int] = {}


@dataclass
class Run:
    """Everything that a run's loop uses; made by `prepare`.

    Attributes:
      changed: leaves that differ from those of config.model.source before the first step.
      rows: the table's rows of all leaves, adapters included.
      abstract: the state's shapes and shardings, frozen leaves left out: what a checkpoint holds.
      reference: the model that stages ask beside the policy, None where none does.
      rollout: how stages sample answers, None where none does.
      train_step: `(state, batch) -> (state, metrics)`, jitted, the state donated.
      eval_step: `(params, batch) -> (terms, metrics)`, jitted.
      policy_pass, reference_pass: `(params, batch, fields=...) -> Outputs`, jitted.
    """

    config: Config
    mesh: Mesh
    bundle: Bundle
    changed: set[str]
    rows: dict[str, Param]
    pipeline: data.Pipeline
    bound: Bound
    steps: int
    state: TrainState
    abstract: TrainState
    reference: Reference | None
    rollout: Rollout | None
    train_step: Any
    eval_step: Any
    policy_pass: Any
    reference_pass: Any

    @property
    def updates(self) -> int:
        """Optimizer steps that one batch of the data leads to."""
        return 1 if self.rollout is None else self.rollout.updates

    def count(self, params: Params) -> int:
        """Parameters of some leaves."""
        return sum(leaf.size for leaf in params.values())

    def staged(
        self, shapes: Mapping[str, tuple[int, ...]], *, training: bool = True
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of the columns that stages add to a batch of these, or write in their place."""
        stages = self.bound.stages if training else self.bound.held_out
        embed = None if self.reference is None else self.reference.model.config.embed
        return staged(stages, self.rollout, embed, shapes)

    @property
    def measures(self) -> list[str]:
        """What stages measure of held-out data, beside the loss."""
        names = [name for stage in self.bound.stages for name in stage.measures]
        if self.rollout is not None and any(s.sequences == GROUP for s in self.bound.stages):
            for name in self.rollout.reward_names:
                names += [f"reward/{name}", f"reward/{name}/failed"]
        return names

    def teacher(self, state: TrainState) -> Teacher | None:
        """What the policy learns from by hidden states, where its loss asks for that."""
        if "divergence" not in self.bound.needs or self.reference is None:
            return None
        return self.reference.teacher(state.frozen)

    def held_out_names(self) -> list[str]:
        """What held-out data is measured by: `eval/loss`, and the metrics of the method's judge."""
        shapes = self.pipeline.shapes[0]
        added = self.staged(shapes, training=False)
        dtypes = column_dtypes(self.config.model.dtype)
        batch = {
            name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtypes[name]))
            for name, shape in (shapes | added).items()
        }
        with jax.set_mesh(self.mesh):
            taught = self.teacher(self.state)
            _, metrics = jax.eval_shape(self.eval_step, self.state.merged(), batch, taught)
        return ["eval/loss", *(f"eval/{name}" for name in (*metrics, *self.measures))]

    def stage(
        self,
        state: TrainState,
        batch: Batch,
        *,
        training: bool = True,
        step: int = 0,
        host: HostBatch | None = None,
        more: Callable[[], HostBatch | None] | None = None,
    ) -> Staged:
        """Runs the algorithm's stages over a batch.

        Args:
          state: the policy, and what stages remember.
          batch: columns on the device.
          training: False before a held-out batch, which goes as far as what judges it needs.
          step: optimizer steps taken so far.
          host: the same batch on the host; what stages write in the place of its sequences is
            written here too.
          more: the next prompts, for stages that need more than a batch has.
        """
        stages = self.bound.stages if training else self.bound.held_out
        if not stages:
            return Staged(batch, state.carry)

        def model(
            *, reference: bool = False, trained: Params | None = None
        ) -> tuple[Decoder, Params]:
            if reference and trained is None:
                assert self.reference is not None
                return self.reference.model, self.reference.params(state.frozen)
            return self.bundle.model, {**state.frozen, **(trained or state.params)}

        def policy(batch: Batch, fields: tuple[str, ...]) -> Outputs:
            return self.policy_pass(model()[1], batch, fields=fields)

        def reference(
            batch: Batch, fields: tuple[str, ...], trained: Params | None = None
        ) -> Outputs:
            run = self.reference_pass if trained is None else self.policy_pass
            _, params = model(reference=True, trained=trained)
            return run(params, batch, fields=fields)

        context = Context(
            step=step,
            training=training,
            trained=state.params,
            policy=policy,
            reference=reference,
            model=model,
            mesh=self.mesh,
            host=host,
            rollout=self.rollout,
            more=more,
            carry=dict(state.carry),
        )
        values = dict(self.bound.values)

        def call(function: Any, *args: Any) -> Any:
            return known_call(function, values, *args)

        batch = run_stages(stages, call, context, batch)
        return Staged(batch, context.carry, context.logged, context.table, context.counted)


def staged(
    stages: Sequence[Stage],
    rollout: Sizes | None,
    embed: int | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """Shapes of the columns that stages add to a batch of these, or write in their place.

    Args:
      stages: in their order.
      rollout: how much is sampled, where answers are.
      embed: the reference's width; None without one.
      shapes: of the data's columns.
    """
    sizes = dict(zip("BNT", shapes["tokens"], strict=True))
    if embed is not None:
        sizes["E"] = embed
    found = {}
    for stage in stages:
        if stage.sequences and rollout is not None:
            n = rollout.n if stage.sequences == GROUP else stage.sequences
            sizes |= {"N": n, "T": rollout.length, "F": len(rollout.rewards)}
        for name, axes in stage.writes.items():
            found[name] = tuple(sizes[axis] for axis in axes.split())
    return found


def all_rows(
    rollout: Sizes | None,
    shapes: Mapping[str, tuple[int, ...]],
    blocks: int,
    parts: int = 1,
    *,
    prompts_once: bool,
) -> dict[str, tuple[int, ...]]:
    """Shapes of a batch whose answers are as long as they can be, in as few rows as `pack_groups`.

    Args:
      rollout: how much is sampled; without one, and before answers are, shapes stay as they are.
      shapes: of all columns.
      blocks: shards times micro-batches.
      parts: into which the batch is cut: the minibatches of a step.
      prompts_once: a group may be a row in which its prompt stands once; else a row is an answer.
    """
    if rollout is None or "sampler_logps" not in shapes:
        return dict(shapes)
    cut = {name: (shape[0] // parts, *shape[1:]) for name, shape in shapes.items()}
    prompts, n, length = cut["tokens"]
    pack = bucket(prompts * n // blocks) * blocks, length
    if prompts_once and n > 1:
        whole = whole_group(length, n, rollout.max_tokens)
        pack = min(pack, (bucket(prompts // blocks) * blocks, whole), key=math.prod)
    return cut | {"pack": pack}
