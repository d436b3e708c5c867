"""What fits: the least recomputation and the fewest micro-batches, then the longest context.

Every trial is a compilation of the optimizer step, so there are few: a step needs less with more
micro-batches, and less with each `remat` policy than with the one before.
"""

import math
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

    def needs(changes: Changes) -> int:
        needed = need(changed(config, changes))
        trials.append(Trial(changes, needed, needed <= room))
        return needed

    def fits(changes: Changes) -> bool:
        return needs(changes) <= room

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
    length = _longest(config, at, devices, room, needs)
    return Found(chosen, why, length, trials)


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


def longest(need: Callable[[int], int | float], room: int, *, step: int, first: int) -> int:
    """The largest number of tokens whose need is within the room, to a step.

    A need grows with the tokens, nearly along a line, and is dear to find out. So what is tried is
    where the line through the two needs nearest to the room meets it, by turns with the middle. For
    a compiler may save what does not fit: below the first that fails each step is twice as long.

    Args:
      need: of so many tokens; infinite where there can be none.
      room: what it must not exceed.
      step: between two numbers that are tried.
      first: the first of them.

    Returns:
      A multiple of the step, 0 where not one fits.
    """
    known: dict[int, int | float] = {}
    low, high, stride, halved = 0, math.inf, 1, True
    at = max(first // step, 1)
    while high - low > 1:
        known[at] = need(at * step)
        stride = 2 * stride if at == low + stride and known[at] <= room else 1
        low, high = (at, high) if known[at] <= room else (low, at)
        meets = _meets(known, room)
        if high == math.inf:
            meets = max(2 * low if meets is None else meets, low + stride)
        elif meets is None or not halved:
            meets, halved = (low + high) / 2, True
        else:
            halved = False
        at = int(min(max(meets, low + 1), high - 1))
    return low * step


def _meets(known: Mapping[int, int | float], room: int) -> float | None:
    """Where the line through the two needs nearest to the room meets it."""
    finite = [pair for pair in known.items() if pair[1] < math.inf]
    nearest = sorted(finite, key=lambda pair: abs(pair[1] - room))[:2]
    if len(nearest) < 2:
        return None
    (one, needs), (other, others) = nearest
    slope = (others - needs) / (other - one)
    return one + (room - needs) / slope if slope > 0 else None


def _longest(
    config: Config, at: Changes, devices: int, room: int, needs: Callable[[Changes], int]
) -> int:
    """The longest sequence, one example a shard of the batch at a time, layers computed again."""
    together = int(at.get("mesh.tensor", config.mesh.tensor)) * int(config.mesh.sequence)
    shards = devices // together
    width = WIDTH.get(named(config.method, METHODS).data, 1)

    def of(length: int) -> int | float:
        row = length * width
        size: Changes = {"data.tokens_per_batch": shards * row, "data.row_length": row}
        if config.data.batch_size is not None:
            size = {"data.batch_size": shards * int(config.rollout.minibatches)}
        try:
            return needs({**at, **size, "accumulate": 1, "data.max_length": length})
        except UserError:  # longer than the model's positions
            return math.inf

    return longest(of, room, step=_STEP, first=_STEP)


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
