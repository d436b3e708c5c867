"""The longest context of a step, its head in chunks and its logits whole, by the TPU compiler.

    python -m benchmarks.tpu.contexts                                    # all cells, an hour or two
    python -m benchmarks.tpu.contexts --cell=qwen3-0.6b,v5e:1x1,grpo

An optimizer step of one example a device: a text, a pair of texts or a prompt with 8 answers, all
as long as the context (of an answer one half is its prompt). All parameters are trained, float32
with Adam's moments; activations are bfloat16, each layer is computed again. *Whole* is the same
step with `model.head_chunk` of all tokens: their logits exist at once. A line through what two
short contexts need proposes the longest, and compilations around it confirm: the longest that the
compiler accepts, and the shortest that it refused.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from ptjax.plan.environment import no_tpu

GIB = 2**30
STEP = 256
"""Tokens between two contexts that are tried."""
CLOSE = 1.06
"""Refused over accepted at which a search ends."""
TRIALS = 5
PLACES = (("qwen3-0.6b", "v5e:1x1"), ("llama3.1-8b", "v5e:4x4"), ("llama3.1-8b", "v5p:2x2x1"))
METHODS = ("sft", "dpo", "grpo")
POSITIONS = {"qwen3-0.6b": 40_960, "llama3.1-8b": 131_072}
"""What the models were made for."""
WIDTH = {"sft": 1, "dpo": 2, "grpo": 8}
"""Sequences of an example."""


class Longest(NamedTuple):
    """What a search came to.

    Attributes:
      accepted: tokens of the longest context that the compiler accepted, 0 for none.
      refused: of the shortest that it refused; None where it accepts what the model was made for.
      need: bytes of a device that the accepted one takes.
    """

    accepted: int
    refused: int | None
    need: int


def settings(model: str, method: str, devices: int, context: int, *, whole: bool) -> dict[str, Any]:
    """Fields of a config whose step has one example of so many tokens on each device."""
    given: dict[str, Any] = {
        "model.source": model,
        "model.dtype": "bfloat16",
        "model.remat": "full",
        "accumulate": 1,
        "data.validation": None,
        "checkpoint.best": None,
        "data.max_length": context,
    }
    if whole:
        given["model.head_chunk"] = WIDTH[method] * context
    if method == "grpo":
        answer = context // 2
        sizes = {"data.max_length": context - answer, "rollout.max_tokens": answer}
        return given | sizes | {"data.batch_size": devices, "rollout.n": WIDTH[method]}
    row = WIDTH[method] * context
    if method == "dpo":
        given["reference.mode"] = "cached"
    return given | {"data.tokens_per_batch": devices * row, "data.row_length": row}


def longest(need: Callable[[int], int], room: int, first: tuple[int, int], most: int) -> Longest:
    """The longest context whose need is within the room.

    Args:
      need: bytes of a device, of a context's tokens; compiles.
      room: bytes of a device.
      first: two short contexts that a line is laid through.
      most: no longer one is tried.
    """
    known = {context: need(context) for context in first}
    (short, least), (long, more) = sorted(known.items())
    slope = (more - least) / (long - short)
    proposed = short + (room - least) / slope
    for _ in range(TRIALS):
        context = min(max(round(proposed / STEP), 1) * STEP, most)
        if context in known:
            break
        known[context] = need(context)
        fine = max((at for at, needed in known.items() if needed <= room), default=0)
        refused = min((at for at, needed in known.items() if needed > room), default=None)
        if fine == most or (refused is not None and refused <= max(CLOSE * fine, fine + STEP)):
            break
        if refused is None:
            proposed = fine * 1.12
        elif fine in first or not fine:
            proposed = refused / 1.12
        else:
            proposed = (fine + refused) / 2
    fine = max((at for at, needed in known.items() if needed <= room), default=0)
    refused = min((at for at, needed in known.items() if needed > room), default=None)
    return Longest(fine, refused, known.get(fine, 0))


def cell(model: str, name: str, method: str) -> str:
    """Searches both ways; a row of the table."""
    from ptjax import config as configs
    from ptjax.plan.search import need_of
    from ptjax.plan.topology import topology

    where = topology(name)
    compiled, room = need_of(where), where.chip.memory
    assert room is not None
    found = {}
    for whole in (False, True):

        def need(context: int, whole: bool = whole) -> int:
            changes = settings(model, method, len(where.devices), context, whole=whole)
            path = f"configs/{method}.py"
            needed = compiled(configs.load(path, changes))
            print(f"  {context:7,} tokens {needed / GIB:8.2f} GiB", flush=True)
            return needed

        kind = "whole" if whole else "chunked"
        print(f"{model} {name} {method}, logits {kind}", flush=True)
        short = 1024 // WIDTH[method] * (1 if whole else 2)
        found[kind] = longest(need, room, (short, 2 * short), POSITIONS[model])
    ours, theirs = found["chunked"], found["whole"]
    said = f"{_said(ours)} | {_said(theirs)} | {_times(ours, theirs)}"
    return f"| {model}, {name} | {method} | {said} |"


def _said(found: Longest) -> str:
    refused = "the model's limit" if found.refused is None else f"not {found.refused:,}"
    return f"{found.accepted:,} ({refused}; {found.need / GIB:.2f} GiB)"


def _times(ours: Longest, theirs: Longest) -> str:
    """At least so many times: against the shortest that was refused."""
    return "-" if theirs.refused is None else f"{ours.accepted / theirs.refused:.1f}"


def main() -> None:
    """Prints the table's rows as they are found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", action="append", help="model,topology,method")
    asked = parser.parse_args().cell
    cells = [tuple(one.split(",")) for one in asked or ()]
    cells = cells or [(*place, method) for place, method in itertools.product(PLACES, METHODS)]
    no_tpu()
    rows = [cell(*one) for one in cells]
    print(
        "\n| model, chips | method | in chunks | whole | times, at least |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
