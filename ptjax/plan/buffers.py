"""The largest values of a program, by the name of what made them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ptjax.plan.hlo import Op, Program, calls, operands, size

_NAMELESS = ("tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "constant")
_MADE_BY = re.compile(r'op_name="([^"]*)"')
_LAYOUT = re.compile(r"\{[^}]*\}")
_ON_CHIP = re.compile(r"S\([1-46]\)")


class Buffer(NamedTuple):
    """A value that is kept in a device's memory.

    Attributes:
      name: of the argument, or of the operation in the Python program that made it.
      shape: a device's part of it, such as `bf16[8,1024,4096]`.
      size: bytes, padding of layouts left out.
      argument: whether the program is given it.
      times: values of this name and shape.
    """

    name: str
    shape: str
    size: int
    argument: bool
    times: int


def largest(program: Program, count: int) -> list[Buffer]:
    """The largest values, one line for those of one name and shape.

    What a fusion holds inside is no buffer, and what lies in a core's own memory is none here.
    """
    fused = {
        called
        for ops in program.computations.values()
        for op in ops
        if op.code in ("fusion", "reduce", "reduce-window", "sort", "map", "scatter")
        or op.code.startswith(("all-reduce", "reduce-scatter"))
        for called in calls(op)
    }
    found: dict[tuple[str, str], Buffer] = {}
    for name, ops in program.computations.items():
        if name in fused:
            continue
        by_name = {op.name: op for op in ops}
        for op in ops:
            argument = op.code == "parameter"
            inner = argument and name != program.entry
            if inner or op.code in _NAMELESS or op.shape.startswith("("):
                continue
            if _ON_CHIP.search(op.shape):
                continue
            key = (_title(op, by_name), _LAYOUT.sub("", op.shape))
            before = found[key].times if key in found else 0
            found[key] = Buffer(*key, size(key[1]), argument, before + 1)
    return sorted(found.values(), key=lambda one: -one.size)[:count]


def _title(op: Op, ops: Mapping[str, Op]) -> str:
    """What made a value; of a copy without a name, of what it is a copy of."""
    copies, at = "", op
    while at is not None:
        if made := _MADE_BY.search(at.text):
            return copies + made[1].replace("\\'", "'")
        if not at.code.startswith("copy"):
            break
        copies, at = "copy of ", ops.get(operands(at)[0])
    return op.name
