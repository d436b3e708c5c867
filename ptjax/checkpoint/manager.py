"""Saving and restoring a run's state: committed by manifest, verified, never silently wrong."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, SupportsFloat

import jax

from ptjax.checkpoint import arrays, hoststate, reading, retention, steps
from ptjax.checkpoint.describe import describe
from ptjax.checkpoint.storage import storage_of
from ptjax.checkpoint.writer import Job
from ptjax.errors import UserError
from ptjax.hosts import exchange

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>/`.

    Every process of a run makes one and makes the same calls. Use it as a context manager, or call
    `close`.

    Args:
      workdir: a folder, or an object store such as gs://bucket/run.
      keep: how many of the newest steps stay; at least 2.
      keep_best: name of a metric and "min" or "max": the best step stays too.
      async_save: write in the background; `save` returns once the arrays left the devices.
      config_hash: from `config_hash`; recorded, and compared on restore.
      fault: called with the name of each phase of a save when it is done: copied, arrays-written,
        hashed, manifest-tmp, manifest-renamed, verified, retention. For tests.

    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int = 2,
        keep_best: tuple[str, str] | None = None,
        async_save: bool = True,
        config_hash: str = "",
        fault: Callable[[str], None] | None = None,
    ):
        retention.check(keep, keep_best)
        self.root = steps.root_of(workdir)
        self.seconds: dict[str, float] = {}
        """Of the last save: waited, copied (together: how long `save` blocked), then arrays, hash,
        commit, verify, retention in the background."""
        self._keep, self._keep_best = keep, keep_best
        self._async = async_save
        self._config_hash = config_hash
        self._fault = fault or (lambda phase: None)
        self._storage = storage_of(self.root)
        self._writer: arrays.Writer | None = None
        self._thread: threading.Thread | None = None
        self._error: UserError | None = None
        self._reported = False
        self._at: int | None = None

    def save(
        self, step: int, state: Any, host: Mapping[str, Any], metrics: Mapping[str, SupportsFloat]
    ) -> None:
        """Saves a state; returns once its arrays are copied from the devices.

        Waits for the save before, if that still runs. A step that this run has saved, or restored,
        is not saved again.

        Args:
          step: greater than every step that this run saved.
          state: pytree of `jax.Array`.
          host: what JSON can hold (keys are strings, tuples come back as lists).
          metrics: recorded, and what `keep_best` reads.

        Raises:
          UserError: this save could not begin, or the one before failed.

        """
        start = time.perf_counter()
        self._join()
        if self._error is not None and not self._reported:
            self._raise()
        if step == self._at:
            return
        leaves = arrays.named(state)
        arrays.check_saveable(leaves)
        if self._at is None and (weak := arrays.weak(leaves)):
            _log.warning(
                "state leaf %s is weakly typed (made from a Python number) and comes back with a "
                "fixed dtype, which may promote differently: give it its dtype when it is made",
                weak[0],
            )
        job = Job(
            root=self.root,
            storage=self._storage,
            manifest=describe(step, leaves, self._config_hash, metrics),
            host=hoststate.dump(host),
            bytes=sum(leaf.nbytes for leaf in leaves.values()),
            keep=self._keep,
            keep_best=self._keep_best,
            fault=self._fault,
        )
        waited = time.perf_counter() - start
        begun, ticket = exchange.ticket(), exchange.ticket()
        try:
            exchange.from_primary(begun, lambda: job.begin(self._at))
            self._writer = self._writer or arrays.Writer()
            self._writer.start(job.folder / arrays.FOLDER, leaves)
            self._fault("copied")
        except UserError:
            raise
        except Exception as error:
            if self._writer is not None:
                with contextlib.suppress(Exception):  # the first error says more
                    self._writer.wait()
            self._failed(job, error)
            self._raise()
        copied = time.perf_counter() - start - waited
        self.seconds = job.seconds = {"waited": waited, "copied": copied}
        # Taken back when it succeeded: whatever ends the thread, nobody is told that all is well.
        self._error = UserError(f"checkpoint of step {step} did not finish")
        self._reported = False
        self._thread = threading.Thread(
            target=self._finish, args=(job, ticket, self._writer), name=f"checkpoint-{step}"
        )
        self._thread.start()
        if not self._async:
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is committed and verified.

        Raises:
          UserError: it failed; raised until a later save has succeeded.

        """
        self._join()
        if self._error is not None:
            self._raise()

    def close(self) -> None:
        """Waits, and lets go of the writer; raises what `wait` raises."""
        self._join()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self.wait()

    def steps(self) -> list[int]:
        """Returns the committed steps, oldest first; does not hash."""
        return [step.step for step in steps.scan(self.root) if step.kind == "committed"]

    def latest(self) -> int | None:
        """Returns the newest committed step, None where there never was one; does not hash.

        Raises:
          UserError: with exit code 3 where there are steps and all of them are bad.

        """

        def ask() -> int | None:
            found = [step for step in steps.scan(self.root) if step.kind != "debris"]
            good = [step.step for step in found if step.kind == "committed"]
            if found and not good:
                raise reading.none_verifies(self.root, found[::-1])
            return good[-1] if good else None

        return exchange.from_primary(exchange.ticket(), ask)

    def restore(self, abstract_state: Any, step: int | None = None) -> reading.Restored:
        """Reads the newest step that verifies, or the given one.

        Newer steps that do not verify are set aside: renamed, or marked in an object store.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, or of arrays; the mesh
            may differ from the one that saved.
          step: that step or none.

        Raises:
          UserError: no step (exit code 2), none that verifies (3), or a state of other arrays (2).

        """
        self._join()
        stored = reading.choose(self.root, step)
        values = stored.read(stored.check(abstract_state))
        if jax.process_index() == 0:
            reading.set_aside(stored, self._storage)
        self._at = stored.step
        return reading.Restored(
            step=stored.step,
            state=jax.tree.unflatten(jax.tree.structure(abstract_state), values.values()),
            host=stored.host(),
            config_changed=stored.manifest.config_hash != self._config_hash,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(UserError):  # it was logged; the error under way says more
            self.close()

    def _finish(self, job: Job, ticket: int, writer: arrays.Writer) -> None:
        try:
            if jax.process_index() == 0:
                exchange.from_primary(ticket, lambda: job.finish(writer))
            else:
                writer.wait()
                exchange.from_primary(ticket, lambda: None)
        except Exception as error:
            self._failed(job, error)
        else:
            self._at, self._error = job.manifest.step, None

    def _failed(self, job: Job, error: Exception) -> None:
        """Logs a failed save at once, and keeps the error for the next call."""
        step = job.manifest.step
        self._error = UserError(f"checkpoint of step {step} failed: {error!r}")
        self._reported = False
        try:
            self._error = job.abandon(error)
        finally:
            _log.error("step %d: %s", step, self._error)

    def _raise(self) -> None:
        self._reported = True
        assert self._error is not None
        raise self._error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
