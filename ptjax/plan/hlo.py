"""The text of an optimised program: its computations, and how often each of them runs."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from ptjax.ops.chunks import LOOP

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
"""Of a computation; a line of what is told of a Pallas kernel may begin alike."""
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHUNKS = re.compile(rf'op_name="[^"]*\b{LOOP}\b[^"]*"')
_TRIPS = re.compile(r'"?known_trip_count"?:?=?\s*\{"?n"?:"?(\d+)"?\}')
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_NUMBERED = re.compile(r"/\*index=\d+\*/")
_BITS = {"pred": 8, "token": 0, "opaque": 0}


class Op(NamedTuple):
    """One instruction.

    Attributes:
      name: unique in its program.
      code: `all-gather-start`, `fusion`, ...
      shape: the text of its result's shape.
      text: the whole line behind `=`.
      root: whether it is its computation's result.
    """

    name: str
    code: str
    shape: str
    text: str
    root: bool


class Program(NamedTuple):
    """A module.

    Attributes:
      computations: name -> instructions.
      entry: the one that runs.
    """

    computations: dict[str, list[Op]]
    entry: str

    def runs(self, chunks: int = 1) -> dict[str, int]:
        """How often each computation runs when the program does, turns of loops included.

        A loop whose number of turns data decide counts once, but for that over chunks of the output
        projection. Of a conditional's branches each counts.

        Args:
          chunks: turns of that.
        """
        counts = dict.fromkeys(self.computations, 0)
        counts[self.entry] = 1
        for name in self.callers_first():
            for op in self.computations[name]:
                times = 1
                if op.code == "while":
                    times = chunks if _CHUNKS.search(op.text) else self._turns(name, op)
                for called in calls(op):
                    if called in counts:
                        counts[called] = max(counts[called], counts[name] * times)
        return counts

    def _turns(self, computation: str, loop: Op) -> int:
        """How often a loop turns: as XLA says, else from its condition, a counter below a number.

        The TPU compiler leaves its own count out of the text.
        """
        if found := _TRIPS.search(loop.text):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
        ops = {op.name: op for op in self.computations.get(condition[1], [])} if condition else {}
        ends = [op for op in ops.values() if op.code == "compare" and "direction=LT" in op.text]
        if len(ends) != 1:
            return 1
        counter, limit = (ops.get(name) for name in operands(ends[0])[:2])
        if counter is None or limit is None or limit.code != "constant":
            return 1
        found = re.search(r"index=(\d+)", counter.text)
        place = int(found[1]) if found else 0
        turns = _constant(limit) - self._initial(computation, loop, place)
        return max(1, -(-turns // self._stride(loop, place)))

    def _initial(self, computation: str, loop: Op, place: int) -> int:
        """What a loop's counter begins with; 0 where the text does not say."""
        ops = {op.name: op for op in self.computations[computation]}
        given = ops.get(operands(loop)[0])
        if given is None or given.code != "tuple":
            return 0
        first = ops.get(operands(given)[place])
        return _constant(first) if first is not None and first.code == "constant" else 0

    def _stride(self, loop: Op, place: int) -> int:
        """What a turn adds to a loop's counter: a loop that XLA unrolls adds more than 1."""
        body = re.search(r"body=%?([\w.\-]+)", loop.text)
        ops = {op.name: op for op in self.computations.get(body[1], [])} if body else {}
        roots = [op for op in ops.values() if op.root and op.code == "tuple"]
        at = ops.get(operands(roots[0])[place]) if roots else None
        added = 0
        while at is not None and at.code in ("add", "copy"):
            given = [ops.get(name) for name in operands(at)]
            added += sum(_constant(op) for op in given if op is not None and op.code == "constant")
            at = next((op for op in given if op is not None and op.code != "constant"), None)
        return max(1, added)

    def callers_first(self) -> list[str]:
        """The computations that the program may run, each before those that it calls."""
        order: list[str] = []
        done: set[str] = set()

        def visit(name: str) -> None:
            if name in done or name not in self.computations:
                return
            done.add(name)
            for op in self.computations[name]:
                for called in calls(op):
                    visit(called)
            order.append(name)

        visit(self.entry)
        return order[::-1]


def calls(op: Op) -> Iterator[str]:
    """The computations that an instruction runs."""
    yield from _CALLED.findall(op.text)
    if branches := _BRANCHES.search(op.text):
        for name in branches[1].split(","):
            yield name.strip().lstrip("%")


def operands(op: Op) -> list[str]:
    """The names of an instruction's operands."""
    inside = op.text[op.text.index(f"{op.code}(") + len(op.code) :]
    return re.findall(r"%([\w.\-]+)", inside[: inside.index(")")])


def _constant(op: Op) -> int:
    found = re.search(r"constant\((-?\d+)\)", op.text)
    return int(found[1]) if found else 0


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` gives."""
    computations: dict[str, list[Op]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif _END.match(line):
            current = None
        elif current is not None and (found := _LINE.match(line)):
            rest = found[3]
            if code := _OPCODE.search(rest):
                shape = rest[: code.start(1)].strip()
                current.append(Op(found[2], code[1], shape, rest, bool(found[1])))
    return Program(computations, entry)


def elements(shape: str) -> list[str]:
    """The texts of a tuple's parts; what is no tuple is its own only one."""
    if not shape.startswith("("):
        return [shape]
    inside, parts, depth = _NUMBERED.sub("", shape)[1:-1], [""], 0
    for letter in inside:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def size(shape: str) -> int:
    """Bytes of all arrays of a shape's text, padding of layouts left out."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        count = 1
        for dim in dims.split(","):
            count *= int(dim) if dim else 1
        total += -(-count * _bits(dtype) // 8)
    return total


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)
    return int(width[1]) if width else 0
