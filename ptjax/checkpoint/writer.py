"""What happens to one save once its arrays have left the devices."""

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
from etils import epath

from ptjax.checkpoint import arrays, hoststate, retention, steps
from ptjax.checkpoint import manifest as manifest_lib
from ptjax.checkpoint.manifest import BadStep, Manifest
from ptjax.checkpoint.storage import INCOMPLETE, Storage, is_full
from ptjax.errors import UserError

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """One save on its way to being committed, verified, and making older ones superfluous."""

    root: epath.Path
    storage: Storage
    manifest: Manifest
    host: str
    """host.json's text."""
    bytes: int
    """Of all arrays, uncompressed."""
    keep: int
    keep_best: tuple[str, str] | None
    fault: Callable[[str], None]
    """Called with the name of each phase just done."""
    seconds: dict[str, float] = field(default_factory=dict)
    committed: bool = False

    @property
    def folder(self) -> epath.Path:
        """Where the step is written."""
        return steps.folder_of(self.root, self.manifest.step)

    def begin(self, at: int | None) -> None:
        """Makes the folder, marked as incomplete; debris goes, another run's steps are set aside.

        Args:
          at: the step that this run last saved or restored.

        Raises:
          UserError: this step, or a newer one, is there already.
          OSError: there is no room for it.

        """
        step, found = self.manifest.step, steps.scan(self.root)
        newest = max((old.step for old in found if old.kind == "committed"), default=-1)
        if step <= (newest if at is None else at):
            raise UserError(
                f"{self.root} holds step {newest}: step {step} is not saved over it; resume from "
                "that step, or use another workdir"
            )
        for old in found:
            if old.kind == "debris" or (old.kind == "aside" and old.folder == self.folder):
                old.folder.rmtree()
            elif old.kind in ("committed", "bad") and at is not None and old.step > at:
                self._supersede(old, f"the run went on from step {at}")
            elif old.folder == self.folder:
                self._supersede(old, old.reason)
        self.folder.mkdir(parents=True)
        self.storage.write(self.folder / INCOMPLETE, "")
        free = self.storage.free(self.root)
        if free is not None and free < self.bytes:  # better not begun than broken off
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _supersede(self, old: steps.Step, reason: str) -> None:
        place = self.storage.set_aside(old.folder, "superseded", reason)
        _log.warning("step %d set aside: %s; now at %s", old.step, reason, place)

    def finish(self, writer: arrays.Writer) -> None:
        """Waits for the arrays, hashes, commits, verifies, deletes what is superfluous.

        Raises:
          UserError: what went wrong, in one line; what was there before still is.

        """
        try:
            self._timed("arrays", writer.wait)
            self.fault("arrays-written")
            self._timed("hash", self._hash)
            self.fault("hashed")
            self._timed("commit", self._commit)
            self.fault("manifest-renamed")
            self._timed("verify", self._verify)
            self.fault("verified")
            self._timed("retention", self._retain)
            self.fault("retention")
        except Exception as error:
            raise self.abandon(error) from error

    def abandon(self, error: Exception) -> UserError:
        """Takes a failed save out of the way: a partial one goes, an unsound one is set aside.

        Returns:
          the one line that says what went wrong, where, and what still stands.

        """
        if isinstance(error, UserError):
            return error
        told = UserError(self._explain(error))
        told.__cause__ = error
        if jax.process_index() == 0:
            try:
                self._clean_up(error)
            except OSError as trouble:
                _log.warning("%s could not be removed: %s", self.folder, trouble)
        return told

    def _clean_up(self, error: Exception) -> None:
        if isinstance(error, BadStep) and error.lasting:
            self.storage.set_aside(self.folder, "bad", str(error))
        elif not self.committed and self.folder.exists():
            self.folder.rmtree()

    def _explain(self, error: Exception) -> str:
        trouble = f"{type(error).__name__}: {error}"
        if isinstance(error, BadStep):
            trouble = f"the files do not read back as they were written ({error})"
        if is_full(error):
            free = self.storage.free(self.root)
            left = "" if free is None else f", {_size(free)} free"
            trouble = f"the disk is full at {self.root}: up to {_size(self.bytes)} needed{left}"
        return f"checkpoint of step {self.manifest.step} failed: {trouble}; {self._what_stands()}"

    def _what_stands(self) -> str:
        try:
            found = [old for old in steps.scan(self.root) if old.kind == "committed"]
        except OSError as error:
            return f"{self.root} cannot be listed ({error})"
        good = [old.step for old in found if old.folder != self.folder]
        return f"the last good step is {good[-1]}" if good else "there is no earlier step"

    def _timed(self, phase: str, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self.seconds[phase] = time.perf_counter() - start

    def _hash(self) -> None:
        self.storage.write(self.folder / hoststate.NAME, self.host)
        self.storage.sync(self.folder)
        self.manifest = replace(self.manifest, files=steps.entries(self.folder))

    def _commit(self) -> None:
        path = self.folder / manifest_lib.NAME
        self.storage.commit(path, manifest_lib.dump(self.manifest), self.fault)
        self.committed = True

    def _verify(self) -> None:
        step = steps.Step(
            self.manifest.step, self.folder, "committed", steps.read_manifest(self.folder)
        )
        if manifest_lib.dump(steps.verify(step, self.storage)) != manifest_lib.dump(self.manifest):
            raise BadStep(f"{manifest_lib.NAME} differs from what was written")
        (self.folder / INCOMPLETE).unlink(missing_ok=True)

    def _retain(self) -> None:
        """Deletes older steps; those that are not sound are neither counted nor deleted."""
        sound: dict[int, steps.Step] = {}
        for step in steps.scan(self.root):
            try:
                if step.manifest is not None:
                    steps.check_sizes(step.folder, step.manifest)
                    sound[step.step] = step
            except (BadStep, OSError) as error:
                _log.warning("step %d does not look sound (%s): kept as it is", step.step, error)
        metrics = {
            n: step.manifest.metrics for n, step in sound.items() if step.manifest is not None
        }
        for number in retention.surplus(metrics, keep=self.keep, keep_best=self.keep_best):
            folder = sound[number].folder
            try:
                self.storage.uncommit(folder / manifest_lib.NAME)
                folder.rmtree()
            except OSError as error:
                _log.warning("step %d could not be deleted: %s", number, error)


def _size(count: int | float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
