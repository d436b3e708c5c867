"""What fits: the least recomputation and the fewest micro-batches, then the longest context.

Every trial is a compilation of the optimizer step, so there are few: a step needs less with more
micro-batches, and less with each `remat` policy than with the one before.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ptjax import sharding
from ptjax.algorithms import METHODS
from ptjax.algorithms.base import named
from ptjax.config import Config, override
from ptjax.errors import UserError
from ptjax.plan.batches import WIDTH
from ptjax.plan.compiled import compile_one
from ptjax.plan.programs import resident, train
from ptjax.plan.shapes import job
from ptjax.plan.topology import Topology

Changes = dict[str, Any]
Need = Callable[[Config], int]

POLICIES = ("none", "dots_and_attention", "dots", "full")
"""Of `config.model.remat`, the one that recomputes least first."""
_TENSOR = (1, 2, 4, 8)
_STEP = 1024
"""Tokens between two lengths that are tried."""


class Trial(NamedTuple):
    """One setting that was compiled.

    Attributes:
      changes: fields of the config, by path.
      need: bytes of a device.
      fits: whether the device has as many.
    """

    changes: Changes
    need: int
    fits: bool


class Found(NamedTuple):
    """What a search came to.

    Attributes:
      changes: of the config, so that its step fits; None where nothing does.
      why: the reason for each choice.
      longest: tokens of the longest sequence that fits, a sequence a device; 0 where none does.
      trials: everything that was compiled, in order.
    """

    changes: Changes | None
    why: list[str]
    longest: int
    trials: list[Trial]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "trials": [one._asdict() for one in self.trials]}


def need_of(where: Topology) -> Need:
    """Bytes of a device that an optimizer step needs, by compiling it."""

    def need(config: Config) -> int:
        mesh = sharding.make_mesh(config.mesh.to_dict(), where.devices)
        made = job(config, mesh)
        return compile_one(train(made), mesh, resident(made), [0] * mesh.size).total

    return need


def search(config: Config, devices: int, room: int, need: Need) -> Found:
    """Looks for settings under which a config's step fits.

    The batch stays as it is: it is chosen for learning.

    Args:
      config: the whole config.
      devices: how many there are.
      room: bytes of each.
      need: of a config, the bytes that its step needs; `need_of` compiles.
    """
    trials: list[Trial] = []

    def fits(changes: Changes) -> bool:
        needed = need(changed(config, changes))
        trials.append(Trial(changes, needed, needed <= room))
        return needed <= room

    chosen, why = None, []
    for mesh in _meshes(config, devices):
        accumulates = _accumulates(changed(config, mesh), devices)
        if not accumulates:
            continue
        for remat in POLICIES:
            smallest = {**mesh, "model.remat": remat, "accumulate": accumulates[-1]}
            if not fits(smallest):
                continue
            fewest = _first(accumulates[:-1], lambda a, at=smallest: fits({**at, "accumulate": a}))
            chosen = {**smallest, "accumulate": fewest or accumulates[-1]}
            why = _reasons(chosen, trials)
            break
        if chosen:
            break
    at = {**(chosen or _meshes(config, devices)[0]), "model.remat": "full"}
    longest = _longest(config, at, devices, fits)
    return Found(chosen, why, longest, trials)


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of a config with some fields set."""
    copy = config.copy_and_resolve_references()
    for path, value in changes.items():
        override(copy, path, value)
    return copy


def _meshes(config: Config, devices: int) -> list[Changes]:
    """Parameters sharded over all devices first; heads and hidden units over some, after that."""
    data = int(config.mesh.data)
    each = devices // data if data > 0 else devices
    each //= max(int(config.mesh.expert), 1) * max(int(config.mesh.sequence), 1)
    return [
        {"mesh.fsdp": each // tensor, "mesh.tensor": tensor}
        for tensor in _TENSOR
        if each % tensor == 0
    ]


def _accumulates(config: Config, devices: int) -> list[int]:
    """Numbers of micro-batches that the batch divides into, the fewest first."""
    shards = devices // (int(config.mesh.tensor) * int(config.mesh.sequence))
    data = config.data
    if data.batch_size is not None:
        whole = data.batch_size // int(config.rollout.minibatches)
    else:
        width = WIDTH.get(named(config.method, METHODS).data, 1)
        whole = data.tokens_per_batch // (data.row_length or data.max_length * width)
    options = [2**k for k in range(12)]
    return [a for a in options if whole % (shards * a) == 0 and whole >= shards * a]


def _first(options: list[int], fits: Callable[[int], bool]) -> int | None:
    """The first option that fits, where all behind one that fits do too."""
    low, high = 0, len(options)
    while low < high:
        middle = (low + high) // 2
        if fits(options[middle]):
            high = middle
        else:
            low = middle + 1
    return options[low] if low < len(options) else None


def _longest(config: Config, at: Changes, devices: int, fits: Callable[[Changes], bool]) -> int:
    """The longest sequence, one example a shard of the batch at a time, layers computed again."""
    together = int(at.get("mesh.tensor", config.mesh.tensor)) * int(config.mesh.sequence)
    shards = devices // together
    width = WIDTH.get(named(config.method, METHODS).data, 1)

    def of(length: int) -> Changes:
        row = length * width
        size: Changes = {"data.tokens_per_batch": shards * row, "data.row_length": row}
        if config.data.batch_size is not None:
            size = {"data.batch_size": shards * int(config.rollout.minibatches)}
        return {**at, **size, "accumulate": 1, "data.max_length": length}

    def holds(steps: int) -> bool:
        try:
            return fits(of(steps * _STEP))
        except UserError:  # longer than the model's positions
            return False

    high = 1
    while holds(high):
        high *= 2
    low = high // 2
    while high - low > 1 and high > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low * _STEP


def _reasons(chosen: Changes, trials: list[Trial]) -> list[str]:
    """Why each field is as it is: the last trial that did not fit without it."""
    refused = [one for one in trials if not one.fits]
    why = []
    for path, value in chosen.items():
        others = [one for one in refused if one.changes.get(path, value) != value]
        if others:
            least = min(others, key=lambda one: one.need)
            other = least.changes[path]
            why.append(f"{path} = {value}: with {other} a step needs {least.need / 2**30:.2f} GiB")
        else:
            why.append(f"{path} = {value}: the first that was tried fits")
    return why
