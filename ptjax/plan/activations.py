"""What a program keeps of the layers from their forward pass to their backward pass."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ptjax.plan.hlo import Op, Program, calls, elements, operands, size

_BODY = re.compile(r"body=%?([\w.\-]+)")
_INDEX = re.compile(r"index=(\d+)")
_DIMS = re.compile(r"^\w+\[([\d,]*)\]")
_HOST = re.compile(r"S\(5\)")
_MOVES = ("copy", "bitcast", "slice", "dynamic-update-slice", "custom-call", "opt-barrier")
"""Of the TPU compiler: between its memories in parts, and the last layer's entry of a stack."""


class Kept(NamedTuple):
    """Bytes of a device, padding of layouts left out.

    Attributes:
      device: in its own memory.
      host: in the host's.
    """

    device: int = 0
    host: int = 0


def kept(program: Program, layers: int) -> Kept:
    """Adds up the stacks that one loop over the layers fills and a later one reads.

    A layer's forward pass writes its entry of arrays [layers, ...], which are given to the loop of
    the backward pass. What that one writes, the gradients of kernels, no further loop is given.

    Args:
      program: optimised.
      layers: that a backward pass goes back through. Nothing is found of a single one, which is no
        loop.
    """
    found: dict[tuple[str, int], str] = {}
    inside: set[str] = set()
    for name in program.callers_first():
        if name in inside:  # loops of one layer, such as those over tiles, may turn as often
            inside |= {called for op in program.computations[name] for called in calls(op)}
            continue
        ops = {op.name: op for op in program.computations[name]}
        for loop in ops.values():
            if loop.code != "while":
                continue
            for key, shape in _read(loop, layers, ops, program):
                found[key] = shape
                inside |= {*calls(loop), *calls(ops[key[0]])}
    host = sum(size(shape) for shape in found.values() if _HOST.search(shape))
    return Kept(sum(map(size, found.values())) - host, host)


def _read(
    loop: Op, layers: int, ops: Mapping[str, Op], program: Program
) -> Iterator[tuple[tuple[str, int], str]]:
    """The stacks that a loop is given, does not change, and that an earlier one filled.

    Each is that loop, the place in what it carries, and the shape there.
    """
    start = ops.get(operands(loop)[0])
    if start is None or start.code != "tuple":
        return
    changed = _changed(loop, program)
    for place, name in enumerate(operands(start)):
        shape = elements(loop.shape)[place]
        if place not in changed and _dims(shape)[:1] == [layers]:
            yield from _filled(name, shape, ops, program)


def _filled(
    name: str, shape: str, ops: Mapping[str, Op], program: Program
) -> Iterator[tuple[tuple[str, int], str]]:
    """The loops' results that a value is: through copies, and what makes one as large of it."""
    dims, seen, left = _dims(shape), {name}, [name]
    while left:
        op = ops.get(left.pop())
        if op is None or op.code in ("while", "parameter"):
            continue
        if (made := _result(op, ops)) is not None:
            loop, place = made
            filled = elements(loop.shape)[place]
            if place in _changed(loop, program) and _dims(filled)[:1] == dims[:1]:
                yield (loop.name, place), filled
            continue
        for before in operands(op):
            same = before in ops and math.prod(_dims(ops[before].shape)) == math.prod(dims)
            if before in ops and before not in seen and (same or op.code.startswith(_MOVES)):
                seen.add(before)
                left.append(before)


def _result(op: Op, ops: Mapping[str, Op]) -> tuple[Op, int] | None:
    """The loop whose result an instruction takes, and which one."""
    index = _INDEX.search(op.text)
    loop = ops.get(operands(op)[0]) if op.code == "get-tuple-element" else None
    return (loop, int(index[1])) if loop and index and loop.code == "while" else None


def _changed(loop: Op, program: Program) -> set[int]:
    """The places of what a turn of a loop does not give back as it was given, copied or not."""
    name = _BODY.search(loop.text)
    ops = {op.name: op for op in program.computations.get(name[1], [])} if name else {}
    roots = [op for op in ops.values() if op.root and op.code == "tuple"]
    given = operands(roots[0]) if roots else []
    return {place for place, name in enumerate(given) if _place_of(name, ops) != place}


def _place_of(name: str, ops: Mapping[str, Op]) -> int | None:
    """Where in a turn's argument a value stands; None where the turn made it."""
    op = ops.get(name)
    while op is not None and op.code in ("copy", "copy-start", "copy-done", "bitcast"):
        op = ops.get(operands(op)[0])
    if op is None or op.code != "get-tuple-element":
        return None
    given, index = ops.get(operands(op)[0]), _INDEX.search(op.text)
    return int(index[1]) if index and given is not None and given.code == "parameter" else None


def _dims(shape: str) -> list[int]:
    found = _DIMS.match(shape)
    return [int(dim) for dim in found[1].split(",") if dim] if found else []
