"""What fits: the least recomputation and the fewest micro-batches, then the longest context.

Every trial is a compilation of the optimizer step, so there are few: from two micro-batches on, a
step needs less with more of them, and less with each `remat` policy than with the one before.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ptjax import prepare, sharding
from ptjax.algorithms import METHODS
from ptjax.algorithms.base import Bound, named
from ptjax.config import Config, override
from ptjax.config.check import check
from ptjax.errors import UserError
from ptjax.plan import programs
from ptjax.plan.architectures import architecture
from ptjax.plan.batches import WIDTH, settings
from ptjax.plan.compiled import compile_all
from ptjax.plan.programs import Planned, resident, train
from ptjax.plan.shapes import Job, job
from ptjax.plan.topology import Topology

Changes = dict[str, Any]
Need = Callable[[Config], int]

POLICIES = ("none", "dots_and_attention", "dots", "full", "minimal")
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
      skipped: what was not tried, and why.
      longest: tokens of the longest `longest_of` that fits; 0 where none does.
      longest_of: what is made longer.
      longest_allowed: tokens that the model's positions leave it.
      trials: everything that was compiled, in order.
    """

    changes: Changes | None
    why: list[str]
    skipped: list[str]
    longest: int
    longest_of: str
    longest_allowed: int
    trials: list[Trial]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "trials": [one._asdict() for one in self.trials]}


def need_of(where: Topology) -> Need:
    """Bytes of a device that an optimizer step needs, by compiling it."""
    return _needed(where, lambda made: [train(made)])


def answers_need_of(where: Topology) -> Need:
    """Bytes that writing a rollout needs, by compiling its programs; 0 where there is none."""
    return _needed(where, programs.answers)


def _needed(where: Topology, of: Callable[[Job], list[Planned]]) -> Need:
    def need(config: Config) -> int:
        mesh = sharding.make_mesh(config.mesh.to_dict(), where.devices)
        made = job(config, mesh)
        compiled = compile_all(of(made), mesh, resident(made), [0] * mesh.size)
        return max((one.total for one in compiled), default=0)

    return need


def search(
    config: Config,
    devices: int,
    room: int,
    need: Need,
    answers: Need,
    tell: Callable[[Trial], None] = lambda _: None,
) -> Found:
    """Looks for settings under which a config's step fits, and what writes its answers.

    The batch stays as it is: it is chosen for learning.

    Args:
      config: the whole config.
      devices: how many there are.
      room: bytes of each.
      need: of a config, the bytes that its step needs; `need_of` compiles.
      answers: those that writing its rollout needs; `answers_need_of` compiles.
      tell: is told of each trial.

    Raises:
      UserError: a config whose batch or mesh cannot be.
    """
    check(config)
    settings(config)
    algorithm = named(config.method, METHODS)
    bound = algorithm.bind(prepare.hyperparameters(config, algorithm), "config.hparams")
    trials: list[Trial] = []

    def needs(changes: Changes) -> int:
        needed = need(changed(config, changes))
        trials.append(Trial(changes, needed, needed <= room))
        tell(trials[-1])
        return needed

    def fits(changes: Changes) -> bool:
        return needs(changes) <= room

    rows, meshes = _rows(config), _meshes(config, devices)
    chosen, skipped = None, []
    for mesh in meshes:
        shards = _shards(config, mesh, devices)
        if rows % shards or not rows:
            of = "rows" if config.data.batch_size is None else "examples of an update"
            tensor = f"mesh.tensor = {mesh['mesh.tensor']}"
            skipped.append(f"{tensor}: {rows} {of} do not divide over {shards} shards")
            continue
        parts = _accumulates(rows // shards, bound)
        for remat in POLICIES:
            at = {**mesh, "model.remat": remat}
            fewest = _fewest(parts, lambda part, at=at: fits({**at, "accumulate": part}))
            if fewest is not None:
                chosen = {**at, "accumulate": fewest}
                break
        if chosen:
            break
    if len(skipped) == len(meshes):
        raise UserError(f"--search: no mesh that is tried has room for the batch: {skipped[0]}")
    why = _reasons(chosen, trials) if chosen else []
    if chosen and any(stage.sequences for stage in bound.stages):
        rows, said = _rows_together(config, chosen, room, answers)
        chosen, why = {**chosen, "rollout.rows": rows}, [*why, f"rollout.rows = {rows}: {said}"]
    at = {**(chosen or meshes[0]), "model.remat": POLICIES[-1], "accumulate": 1}
    what, allowed = _context(config, bound)
    length = _longest(config, at, _shards(config, at, devices), allowed, room, needs)
    return Found(chosen, why, skipped, length, what, allowed, trials)


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of a config with some fields set."""
    copy = config.copy_and_resolve_references()
    for path, value in changes.items():
        override(copy, path, value)
    return copy


def _rows_together(config: Config, chosen: Changes, room: int, answers: Need) -> tuple[int, str]:
    """Answers that are written together, halved until their programs fit; and why so many."""
    rows, before = int(config.rollout.rows), ""
    while True:
        needed = answers(changed(config, {**chosen, "rollout.rows": rows}))
        said = f"writing needs {needed / 2**30:.2f} GiB"
        if needed <= room:
            return rows, before or said
        before = f"with {rows} {said}"
        if rows == 1:
            return 1, f"{before}, and nothing that was tried fits"
        rows = -(-rows // 2)


def _meshes(config: Config, devices: int) -> list[Changes]:
    """Parameters sharded over all devices first; heads and hidden units over some, after that."""
    sizes = {axis: int(config.mesh[axis]) for axis in ("data", "expert", "sequence")}
    sizes["data"] = 1 if sizes["data"] == -1 else sizes["data"]  # what is left is for the others
    kept = math.prod(sizes.values())
    if min(sizes.values()) < 1 or devices % kept:
        asked = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(f"config.mesh {asked}: does not divide the {devices} devices")
    each = devices // kept
    return [
        {"mesh.fsdp": each // tensor, "mesh.tensor": tensor}
        for tensor in _TENSOR
        if each % tensor == 0
    ]


def _shards(config: Config, mesh: Changes, devices: int) -> int:
    """Of a batch."""
    return devices // (mesh["mesh.tensor"] * int(config.mesh.sequence))


def _rows(config: Config) -> int:
    """What shards and micro-batches divide: a batch's rows, or the examples of an update."""
    data, parts = config.data, int(config.rollout.minibatches)
    if parts < 1:
        raise UserError(f"config.rollout.minibatches = {parts}: at least 1")
    if data.batch_size is not None:
        return data.batch_size // parts
    width = WIDTH.get(named(config.method, METHODS).data, 1)
    return data.tokens_per_batch // (data.row_length or data.max_length * width)


def _accumulates(rows: int, bound: Bound) -> list[int]:
    """Numbers of micro-batches that a shard's rows divide into, the fewest first."""
    return [a for a in range(1, rows + 1) if rows % a == 0 and not (bound.coupled and a > 1)]


def _fewest(options: list[int], fits: Callable[[int], bool]) -> int | None:
    """The fewest micro-batches that fit; None where none does.

    One alone has no gradients to add up, and may fit where two and more do not.
    """
    one, *more = options
    if fits(one):
        return one
    if not more or not fits(more[-1]):
        return None
    return more[bisect_left(more, True, hi=len(more) - 1, key=fits)]


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
        limit = meets(known, room)
        if high == math.inf:
            limit = max(2 * low if limit is None else limit, low + stride)
        elif limit is None or not halved:
            limit, halved = (low + high) / 2, True
        else:
            halved = False
        at = int(min(max(limit, low + 1), high - 1))
    return low * step


def meets(known: Mapping[int, int | float], room: int) -> float | None:
    """Where the line through the two needs nearest to the room meets it."""
    finite = [pair for pair in known.items() if pair[1] < math.inf]
    nearest = sorted(finite, key=lambda pair: abs(pair[1] - room))[:2]
    if len(nearest) < 2:
        return None
    (one, needs), (other, others) = nearest
    slope = (others - needs) / (other - one)
    return one + (room - needs) / slope if slope > 0 else None


def _context(config: Config, bound: Bound) -> tuple[str, int]:
    """What is made longer, and how many tokens of it the model's positions have room for."""
    room = architecture(config.model.source).max_positions
    if not any(stage.sequences for stage in bound.stages):
        return "sequence, one example a device at a time", room
    answer = int(config.rollout.max_tokens)
    what = f"prompt, one a device at a time with all of its answers of {answer:,} tokens"
    return what, max(room - answer, 0)


def _longest(
    config: Config,
    at: Changes,
    shards: int,
    allowed: int,
    room: int,
    needs: Callable[[Changes], int],
) -> int:
    """The longest sequence, one example a shard of the batch at a time, layers computed again."""
    data = config.data
    row = WIDTH.get(named(config.method, METHODS).data, 1)
    unset = {f"data.{name}": None for name in ("row_length", "buckets") if data[name] is not None}

    def of(length: int) -> int | float:
        if length > allowed:
            return math.inf
        size: Changes = {"data.tokens_per_batch": shards * length * row}
        size |= {**unset, "data.row_length": length * row}
        if data.batch_size is not None:
            size = {**unset, "data.batch_size": shards * int(config.rollout.minibatches)}
        return needs({**at, **size, "data.max_length": length})

    step = min(_STEP, allowed)
    return longest(of, room, step=step, first=step) if step else 0


def _reasons(chosen: Changes, trials: list[Trial]) -> list[str]:
    """Why each field is as it is: what a step needs at least without that, all before it alike."""
    why, alike = [], trials
    fields = ("mesh.tensor", "model.remat", "accumulate")
    for i, path in enumerate(fields):
        others = [one for one in alike if one.changes[path] != chosen[path] and not one.fits]
        said = "the first that was tried fits"
        if others:
            least = min(others, key=lambda one: one.need)
            at = ", ".join(f"{field} = {least.changes[field]}" for field in fields[i + 1 :])
            said = f"with {least.changes[path]} a step needs {least.need / 2**30:.2f} GiB"
            said += f" at least, at {at}" if at else ""
        why.append(f"{path} = {chosen[path]}: {said}")
        alike = [one for one in alike if one.changes[path] == chosen[path]]
    return why
