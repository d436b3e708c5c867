"""What a program sends between devices: collectives by kind, how many, how many bytes."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptjax.plan.hlo import Op, Program, calls, size

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_GROUPS = re.compile(
    r"replica_groups=(\{\{[\d,{}\s]*\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
    r"|mesh\[[^\]]*\](?:, device_ids=\([^{]*\))? ?\{[^}]*\})"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}\s]*\})\}")
_IOTA = re.compile(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? ?\{([^}]*)\}")
_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_FIRST = re.compile(r"\w+\[[\d,]*\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Traffic(NamedTuple):
    """Collectives of one kind over one network.

    Attributes:
      kind: one of `KINDS`.
      between_slices: whether devices of several slices take part.
      times: how often one runs when the program does.
      sent: bytes that a device sends by them, by the ring algorithm.
    """

    kind: str
    between_slices: bool
    times: int
    sent: int


def traffic(program: Program, slices: Sequence[int], chunks: int = 1) -> list[Traffic]:
    """Adds up a program's collectives, those of a loop as often as it turns.

    Args:
      program: optimised.
      slices: of each device, in the order of the mesh.
      chunks: turns of the loop over the output projection, which the program does not say.
    """
    runs = program.runs(chunks)
    everything = [op for ops in program.computations.values() for op in ops]
    fused = {name for op in everything if op.code == "fusion" for name in calls(op)}
    seen: dict[object, tuple[str, bool, int, float]] = {}
    for name, ops in program.computations.items():
        for op in ops:
            kind = _kind(op, name)
            if kind is None or not runs[name]:
                continue
            if op.code == "send":
                crosses, sent = True, _sent_between(op, kind, len(set(slices)))
            else:
                groups = _groups(op, len(slices))
                crosses = any(len({slices[i] for i in group}) > 1 for group in groups)
                sent = _sent(op, kind, max(map(len, groups), default=1))
            entry = kind, crosses, runs[name], sent
            # One that is spread over several fusions stands in each of them, under one channel; but
            # a channel may be that of all that a shard_map sends.
            channel, source = _CHANNEL.search(op.text), _SOURCE.search(op.text)
            key: object = op.name
            if channel and name in fused:
                key = channel[1], kind, source[1] if source else ""
            if key not in seen or seen[key][2] < entry[2]:
                seen[key] = entry
    totals: dict[tuple[str, bool], list[float]] = {}
    for kind, crosses, times, sent in seen.values():
        total = totals.setdefault((kind, crosses), [0, 0.0])
        total[0] += times
        total[1] += times * sent
    order = sorted(totals, key=lambda key: (key[1], KINDS.index(key[0])))
    return [Traffic(*key, int(totals[key][0]), round(totals[key][1])) for key in order]


def _kind(op: Op, computation: str) -> str | None:
    """A collective's kind; of one that is started and ended apart the start counts.

    Between slices the TPU compiler has hosts do it, and writes a `send` and a `recv`.
    """
    if op.code == "send" and (between := _BETWEEN.search(op.text)):
        kind = between[1].lower().replace("_", "-")
        return kind if kind in KINDS else "collective-permute"
    code = op.code.removesuffix("-start")
    if code not in KINDS:
        return None
    # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
    if code == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return code


def _sent(op: Op, kind: str, group: int) -> float:
    """Bytes that a device sends.

    With g devices and M bytes of the whole: all-gather, reduce-scatter and all-to-all M (g-1)/g,
    all-reduce twice that, a permutation what it passes on.
    """
    total, started = float(size(op.shape)), op.code.endswith("-start")
    if kind == "collective-permute":
        return total / 2 if started else float(total)
    if group <= 1:
        return 0.0
    whole = total
    if kind == "all-gather" and started:  # the result's shape holds the operand's too
        whole = total * group / (group + 1)
    elif kind == "reduce-scatter" and op.code.startswith("reduce-scatter"):
        whole = total * group / (group + 1) if started else total * group
    elif kind == "all-to-all" and started:
        whole = total / 2
    share = whole * (group - 1) / group
    return 2 * share if kind == "all-reduce" else share


def _sent_between(op: Op, kind: str, slices: int) -> float:
    """Bytes of a device's part that go to other slices, whose hosts do the rest."""
    part = _FIRST.search(op.shape)
    total = float(size(part[0])) if part else 0.0
    return 2 * total * (slices - 1) / slices if kind == "all-reduce" else total


def _groups(op: Op, devices: int) -> list[list[int]]:
    """The devices that exchange with each other, by their places in the mesh."""
    if pairs := _PAIRS.search(op.text):
        listed = [_numbers(pair) for pair in re.findall(r"\{([\d,\s]*)\}", pairs[1])]
        return [pair for pair in listed if len(set(pair)) > 1]
    found = _GROUPS.search(op.text)
    if found is None or found[1] == "{}":
        return [list(range(devices))]
    if mesh := _MESH.fullmatch(found[1]):
        return _of_mesh(mesh[1], mesh[2], mesh[3])
    if iota := _IOTA.fullmatch(found[1]):
        shape = _numbers(iota[1])
        return _in_order(iota[2], int(np.prod(shape))).reshape(shape).tolist()
    return [_numbers(group) for group in re.findall(r"\{([\d,\s]+)\}", found[1])]


def _of_mesh(axes: str, order: str | None, over: str) -> list[list[int]]:
    """Groups along some axes of a mesh; of an axis that is cut, along the part that is named."""
    sizes = {name: int(length) for name, length in _AXIS.findall(axes)}
    found = _PART.findall(over)
    parts = {name: (int(before), int(length)) for name, before, length in found if length}
    whole = {name for name, _, length in found if not length}
    shape: list[int] = []
    grouped: list[int] = []
    for name, length in sizes.items():
        before, middle = parts.get(name, (1, length))
        shape += [before, middle, length // (before * middle)]
        if name in parts or name in whole:
            grouped.append(len(shape) - 2)
    places = _in_order(order, int(np.prod(shape))).reshape(shape)
    others = [axis for axis in range(len(shape)) if axis not in grouped]
    width = int(np.prod([shape[axis] for axis in grouped]))
    return places.transpose([*others, *grouped]).reshape(-1, width).tolist()


def _in_order(order: str | None, devices: int) -> np.ndarray:
    """A mesh's devices: their own order, that of a list, or of a transposed range: [2,4]T(1,0)."""
    if order is None:
        return np.arange(devices)
    made = _ORDER.fullmatch(order)
    if made is None:
        return np.array(_numbers(order))
    places = np.arange(devices).reshape(_numbers(made[1]))
    return places.transpose(_numbers(made[2])) if made[2] else places


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
