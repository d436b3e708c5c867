"""Where a step's time goes, part by part of the model: reads what `sft.py --profile` traced.

    python benchmarks/sft.py --mode=ours --train=full ... --profile=trace
    python benchmarks/where.py trace

The compiled program says which source line each of its instructions comes from; the trace says how
long each ran, in seconds of one thread. What runs inside a `while` is counted once, where it runs.
"""

import collections
import gzip
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

PARTS = (
    ("attention", "ops/attention.py"),
    ("head and loss", "ops/logprobs.py"),
    ("projections", "models/layers.py"),
    ("optimizer", "optax"),
)
OUTER = ("while", "call", "cond")
PRODUCT = re.compile(r"dot_general$")


class Origin(NamedTuple):
    """Where an instruction comes from."""

    files: tuple[str, ...]
    op: str


def origins(program: str) -> dict[str, Origin]:
    """Instruction name -> the source files on its stack, and the name of its operation."""

    def table(name: str) -> dict[int, str]:
        block = re.search(rf"^{name}\n((?:\d+ .*\n)+)", program, re.MULTILINE)
        lines = block[1].splitlines() if block else []
        return {int(number): rest for number, _, rest in (line.partition(" ") for line in lines)}

    names, places, frames = table("FileNames"), table("FileLocations"), table("StackFrames")

    def number(key: str, text: str) -> int:
        found = re.search(rf"{key}=(\d+)", text)
        return int(found[1]) if found else 0

    def stack(frame: int) -> tuple[str, ...]:
        files = []
        while frame in frames:
            place = places[number("file_location_id", frames[frame])]
            files.append(names[number("file_name_id", place)].strip('"'))
            frame = number("parent_frame_id", frames[frame]) - 1  # written one too high
        return tuple(files)

    found = {}
    for line in program.splitlines():
        named = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        if named:
            op = re.search(r'op_name="([^"]*)"', line)
            found[named[1]] = Origin(stack(number("stack_frame_id", line)), op[1] if op else "")
    return found


def part(origin: Origin) -> tuple[str, str]:
    """(part of the model, direction) of an instruction."""
    way = "backward" if "transpose(" in origin.op else "forward"
    for name, file in PARTS:
        if any(file in path for path in origin.files):
            if name == "optimizer":
                return name, "update"
            inside = name in ("attention", "head and loss") or PRODUCT.search(origin.op)
            return (name, way) if inside else ("norms, rotary, activations, copies", way)
    return "everything else", way


def main() -> None:
    """Reads a folder with a trace and its program, and prints the table."""
    if len(sys.argv) != 2:
        sys.exit("error: python benchmarks/where.py FOLDER, the --profile of sft.py")
    folder = Path(sys.argv[1])
    known = origins((folder / "program.txt").read_text())
    trace = max(folder.glob("**/*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    seconds: collections.Counter[tuple[str, str]] = collections.Counter()
    for event in events:
        name = event.get("name", "")
        if (
            event.get("ph") == "X"
            and name in known
            and not name.startswith(("while", "call", "cond"))
        ):
            seconds[part(known[name])] += event.get("dur", 0) / 1e6
    total = sum(seconds.values())
    print("| part | direction | thread seconds | share |\n|---|---|---|---|")
    for (name, way), spent in seconds.most_common():
        print(f"| {name} | {way} | {spent:.2f} | {spent / total:.0%} |")


if __name__ == "__main__":
    main()
