"""Whether a run can go on from a checkpoint: asked by the run itself, and by `--dry_run`."""

from collections.abc import Mapping
from typing import Any

from ptjax.checkpoint.manager import Checkpoints
from ptjax.checkpoint.reading import open_step
from ptjax.data.iterate import TrainIterator
from ptjax.errors import UserError
from ptjax.job import Run
from ptjax.models.fingerprint import fingerprint


def go_on(
    batches: TrainIterator,
    frozen: Mapping[str, str],
    found: Mapping[str, Any],
    *,
    source: str,
    workdir: str,
) -> None:
    """Goes to where a checkpoint's data stood.

    Args:
      batches: of this run.
      frozen: fingerprint of the leaves that this run does not train.
      found: the checkpoint's part of the host.
      source: the base model's, for the message.
      workdir: the run's, for the message.

    Raises:
      UserError: the base model or the data are not those that the run began with.
    """
    if found["frozen"] != frozen:
        raise UserError(
            f"{workdir}: the base model at {source} is not the one that this run began with; use "
            "another workdir"
        )
    batches.set_state(found["data"])


def outlook(run: Run, workdir: str) -> str:
    """What a run would do in its workdir; nothing there is changed.

    Raises:
      UserError: what the run itself would say: it cannot go on from what is there.
    """
    if Checkpoints(workdir).latest() is None:
        return "no checkpoint is there: the run begins anew"
    stored = open_step(workdir)
    stored.check(run.abstract)
    frozen, source = fingerprint(run.state.frozen), run.config.model.source
    go_on(run.pipeline.train(), frozen, stored.host(), source=source, workdir=workdir)
    if stored.step >= run.steps:
        return f"step {stored.step} of {run.steps} is there: the run is finished"
    return f"the run goes on from step {stored.step} of {run.steps}"
