"""What happens to one save once its arrays have left the devices."""

import datetime
import importlib.metadata
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from etils import epath

from ptjax.checkpoint import arrays, retention, steps
from ptjax.checkpoint import manifest as manifest_lib
from ptjax.checkpoint.manifest import BadStep, Manifest
from ptjax.checkpoint.storage import INCOMPLETE, Storage, is_full

HOST = "host.json"
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

    def begin(self) -> None:
        """Makes the folder, marked as incomplete."""
        self.folder.mkdir(parents=True)
        self.storage.write(self.folder / INCOMPLETE, "")

    def finish(self, writer: arrays.Writer) -> None:
        """Waits for the arrays, hashes, commits, verifies, deletes what is superfluous.

        Raises:
          BadStep: where the files do not read back as they were written.

        """
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

    def clean_up(self, error: Exception) -> None:
        """Takes a failed save out of the way: a partial one is deleted, an unsound one set aside."""
        try:
            if isinstance(error, BadStep):
                self.storage.set_aside(self.folder, "bad", str(error))
            elif not self.committed and self.folder.exists():
                self.folder.rmtree()
        except OSError as trouble:
            _log.warning(
                "step %d: %s could not be removed: %s", self.manifest.step, self.folder, trouble
            )

    def explain(self, error: Exception) -> str:
        """Returns the one line that says what went wrong, where, and what still stands."""
        step = self.manifest.step
        if is_full(error):
            try:
                free = self.storage.free(self.root)
            except OSError:
                free = None
            left = "" if free is None else f", {_size(free)} free"
            trouble = f"the disk is full at {self.root}: up to {_size(self.bytes)} needed{left}"
        else:
            trouble = f"{type(error).__name__}: {error}"
        try:
            good = [s.step for s in steps.scan(self.root) if s.kind == "committed"]
            stands = f"the last good step is {good[-1]}" if good else "no earlier step is there"
        except OSError:
            stands = f"{self.root} cannot be listed"
        return f"checkpoint of step {step} failed: {trouble}; {stands}"

    def _timed(self, phase: str, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self.seconds[phase] = time.perf_counter() - start

    def _hash(self) -> None:
        self.storage.write(self.folder / HOST, self.host)
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


def describe(
    step: int, leaves: Mapping[str, jax.Array], config_hash: str, metrics: Mapping[str, float]
) -> Manifest:
    """Returns the manifest of a state, its files still to be listed."""
    meshes = [getattr(leaf.sharding, "mesh", None) for leaf in leaves.values()]
    mesh: Any = next((mesh for mesh in meshes if mesh is not None), None)
    return Manifest(
        step=step,
        config_hash=config_hash,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={name: _version(package) for name, package in _PACKAGES.items()},
        topology={
            "devices": jax.device_count(),
            "platform": jax.default_backend(),
            "processes": jax.process_count(),
            "mesh": {} if mesh is None else dict(mesh.shape),
        },
        metrics={name: float(value) for name, value in metrics.items()},
        leaves=arrays.specs(leaves),
    )


_PACKAGES = {"ptjax": "ptjax", "jax": "jax", "orbax": "orbax-checkpoint"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
