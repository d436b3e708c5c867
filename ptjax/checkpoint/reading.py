"""Choosing a step that verifies, and reading from it."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from ptjax.checkpoint import arrays, hoststate, steps
from ptjax.checkpoint.manifest import BadStep, Manifest
from ptjax.checkpoint.steps import Step
from ptjax.checkpoint.storage import Storage
from ptjax.errors import UserError
from ptjax.hosts import exchange

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A step that verified, nothing of it read onto a device yet."""

    step: int
    folder: epath.Path
    manifest: Manifest
    passed_over: tuple[Step, ...] = ()
    """Newer steps that did not verify, with reasons."""

    @property
    def leaves(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every array, by name, such as `params/layers.q`."""
        return {
            name: jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype))
            for name, (shape, dtype) in self.manifest.leaves.items()
        }

    def host(self) -> dict[str, Any]:
        """Returns the host's part of the state, as it was given to `save`."""
        return hoststate.load(self.folder)

    def check(self, abstract_state: Any) -> dict[str, Any]:
        """Returns the leaves of a state by name, where they are what is stored, all of it.

        Raises:
          UserError: names the first leaf that differs.

        """
        leaves = arrays.named(abstract_state)
        where = f"checkpoint of step {self.step} in {self.folder.parent}"
        arrays.match(leaves, self.manifest.leaves, where)
        return leaves

    def read(self, leaves: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Reads some or all of the arrays.

        Args:
          leaves: by name, anything with shape, dtype and sharding.

        Raises:
          UserError: where a leaf is not stored with that shape and dtype.

        """
        known = {
            name: self.manifest.leaves[name] for name in leaves if name in self.manifest.leaves
        }
        arrays.match(leaves, known, f"checkpoint of step {self.step}")
        return arrays.restore(self.folder / arrays.FOLDER, leaves)


@dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found."""

    step: int
    state: Any
    """The pytree asked for, with the shardings asked for."""
    host: dict[str, Any]
    config_changed: bool
    """The configuration's hash differs from the saving run's; `changed_keys` says what changed."""


def open_step(workdir: str | os.PathLike[str], step: int | None = None) -> Stored:
    """Returns a workdir's newest step that verifies, or the given one; changes nothing on disk.

    Raises:
      UserError: no step there (exit code 2), or none that verifies (exit code 3).

    """
    return choose(steps.root_of(workdir), step)


def choose(root: epath.Path, step: int | None) -> Stored:
    """Does what `open_step` does, for all processes alike: process 0 reads and hashes."""

    def ask() -> dict[str, Any]:
        chosen, bad = _verified(root, step)
        told = [[s.step, str(s.folder), str(s.reason), s.lasting] for s in bad]
        return {"step": chosen, "bad": told}

    answer = exchange.from_primary(exchange.ticket(), ask)
    folder = steps.folder_of(root, answer["step"])
    bad = tuple(
        Step(number, epath.Path(path), "bad", reason=reason, lasting=lasting)
        for number, path, reason, lasting in answer["bad"]
    )
    return Stored(answer["step"], folder, steps.read_manifest(folder), bad)


def _verified(root: epath.Path, step: int | None) -> tuple[int, list[Step]]:
    found = [s for s in reversed(steps.scan(root)) if s.kind != "debris"]
    wanted = [s for s in found if s.kind != "aside" and step in (None, s.step)]
    if step is not None and not wanted:
        there = ", ".join(str(s.step) for s in reversed(found) if s.kind == "committed")
        raise UserError(f"no checkpoint of step {step} in {root}; steps there: {there or 'none'}")
    bad: list[Step] = []
    for candidate in wanted:
        try:
            steps.verify(candidate)
            return candidate.step, bad
        except BadStep as error:
            bad.append(
                Step(candidate.step, candidate.folder, "bad", None, str(error), error.lasting)
            )
    if step is not None:
        raise UserError(
            f"step {step} in {root} does not verify: {bad[0].reason}; nothing was changed: name "
            "another step, or none to take the newest that verifies",
            exit_code=3,
        )
    raise none_verifies(root, bad + [s for s in found if s.kind == "aside"])


def none_verifies(root: epath.Path, bad: list[Step]) -> UserError:
    """Returns the error for a folder in which no step can be restored."""
    if not bad:
        return UserError(f"no checkpoint in {root}")
    reasons = "; ".join(f"step {s.step}: {s.reason}" for s in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return UserError(
        f"no checkpoint in {root} verifies ({reasons}{more}); nothing was deleted: restore the "
        "files from a copy, or start anew in another workdir",
        exit_code=3,
    )


def set_aside(stored: Stored, storage: Storage) -> None:
    """Takes the newer steps that did not verify out of the way; one log line each."""
    for bad in stored.passed_over:
        place = "left where it is"
        try:
            if bad.lasting:
                place = f"now at {storage.set_aside(bad.folder, 'bad', bad.reason)}"
        except OSError as error:
            place = f"could not be set aside ({error})"
        _log.warning(
            "step %d does not verify: %s; %s; resuming from step %d",
            *(bad.step, bad.reason, place, stored.step),
        )
