"""What each optimizer step trains on: a fresh batch behind its stages, or a part of a rollout.

A rollout of B prompts is trained on in `epochs · minibatches` steps of B / minibatches prompts. It
is kept with the state, so that a run that is interrupted between two of them goes on with the rest.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ptjax.data import HostBatch
from ptjax.data.iterate import TrainIterator
from ptjax.data.order import generator
from ptjax.data.pack_groups import pack_groups
from ptjax.data.plan import Blocks
from ptjax.errors import UserError
from ptjax.job import BUFFER, Run
from ptjax.metrics.completions import with_advantages
from ptjax.sharding import batch_shards, fetch, put_batch
from ptjax.types import Batch, TrainState

_DRAW = 107


@dataclass(frozen=True)
class Update:
    """One step's batch.

    Attributes:
      host: its columns on the host.
      columns: the same on the device, with those of the stages.
      carry: what stages remember, and the rollout while parts of it are still to come.
      logged: scalars of the stages; none where they did not run.
      table: what was sampled, a row an answer, with its advantage.
      fresh: whether the stages ran.
    """

    host: HostBatch
    columns: Batch
    carry: dict[str, Any]
    logged: dict[str, Any]
    table: list[dict[str, Any]]
    fresh: bool = True


class Updates:
    """A run's batches, one a step.

    Args:
      run: made by `prepare`.
      batches: of the data, at the place that belongs to the step.
    """

    def __init__(self, run: Run, batches: TrainIterator):
        self._run, self._batches = run, batches
        self._blocks = Blocks(batch_shards(run.mesh), run.config.accumulate)
        self._kept: dict[str, np.ndarray] | None = None

    def samples(self, step: int) -> bool:
        """Whether the step begins with answers of the policy, which must have been updated."""
        return self._run.rollout is not None and step % self._run.updates == 0

    def pull(self, step: int) -> HostBatch | None:
        """The next batch of the data, where the step begins with one.

        Raises:
          UserError: there is none, since rollouts took more prompts than a batch each.
        """
        if step % self._run.updates:
            return None
        if (host := next(self._batches, None)) is None:
            raise UserError(
                f"config.data.sources: their epochs ended before step {step + 1}, since dynamic "
                "sampling takes further prompts; set more epochs, or fewer config.steps"
            )
        return host

    def make(self, state: TrainState, step: int, host: HostBatch | None) -> Update:
        """The step's batch.

        Args:
          state: before the step.
          step: optimizer steps taken so far.
          host: from `pull`.
        """
        if host is None:
            return self._part(state, step)
        run = self._run
        columns = put_batch(host.columns, run.mesh, whole=run.pipeline.whole)
        found = run.stage(
            state, columns, step=step, host=host, more=lambda: next(self._batches, None)
        )
        table = with_advantages(found.table, found.batch)
        if run.updates == 1:
            return Update(host, found.batch, found.carry, found.logged, table)
        kept = {
            name: jax.device_put(found.batch[name], room.sharding)
            for name, room in state.carry[BUFFER].items()
        }  # where the step leaves it: the second part compiles nothing
        self._kept = fetch(kept)
        first = self._part(state, step)
        return Update(first.host, first.columns, {**found.carry, BUFFER: kept}, found.logged, table)

    def _part(self, state: TrainState, step: int) -> Update:
        """A minibatch of the rollout that is being used."""
        run = self._run
        assert run.rollout is not None
        kept = self._kept
        if kept is None:  # the run was resumed between two parts
            kept = self._kept = fetch(state.carry[BUFFER])
        rows = self._rows(step, len(kept["weights"]))
        columns = {name: column[rows] for name, column in kept.items()}
        columns["pack"] = pack_groups(
            columns,
            self._blocks,
            prompts_once=run.rollout.prompts_once,
            answer=run.rollout.max_tokens,
        )
        host = HostBatch(columns, [0 if any(w) else -1 for w in columns["weights"].tolist()])
        if (step + 1) % run.updates == 0:
            self._kept = None
        columns = put_batch(columns, run.mesh, whole=True)
        return Update(host, columns, state.carry, {}, [], fresh=False)

    def _rows(self, step: int, count: int) -> np.ndarray:
        """Which prompts: those of each shard are dealt anew in every epoch."""
        rollout = self._run.rollout
        assert rollout is not None
        epoch, part = divmod(step % self._run.updates, rollout.minibatches)
        begun = step // self._run.updates
        shards = np.arange(count).reshape(self._blocks.shards, -1)
        dealt = generator(rollout.seed, _DRAW, begun, epoch).permuted(shards, axis=1)
        return np.split(dealt, rollout.minibatches, axis=1)[part].reshape(-1)
