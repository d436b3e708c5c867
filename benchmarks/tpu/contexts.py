"""The longest context of a step, its head in chunks and its logits whole, by the TPU compiler.

    python -m benchmarks.tpu.contexts                                    # all cells, an hour or two
    python -m benchmarks.tpu.contexts --cell=qwen3-0.6b,v5e:1x1,grpo

An optimizer step of one example a device: a text, a pair of texts or a prompt with 8 answers, all
as long as the context (of an answer one half is its prompt). All parameters are trained, float32
with Adam's moments; activations are bfloat16, each layer is computed again. *Whole* is the same
step with `model.head_chunk` of all tokens: their logits exist at once. The search is that of
`python -m ptjax.plan --search`: lines through what was compiled propose, compilations confirm. In a
cell stand the longest context that the compiler accepts and the shortest that it refused; *times*
is ours over the shortest that it refused of the other.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ptjax.plan.environment import no_tpu

GIB = 2**30
FIRST = 8192
"""Of the tokens of a device half are tried first; the next method begins with half of what fits."""
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
    need: float


def settings(model: str, method: str, devices: int, context: int, *, whole: bool) -> dict[str, Any]:
    """Fields of a config whose step has one example of so many tokens on each device."""
    given: dict[str, Any] = {
        "model.source": model,
        "model.dtype": "bfloat16",
        "model.remat": "minimal",
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


def search(need: Callable[[int], float], room: int, *, step: int, first: int, most: int) -> Longest:
    """The longest context whose need is within the room.

    Args:
      need: bytes of a device, of a context's tokens; compiles.
      room: bytes of a device.
      step: tokens between two contexts that are tried.
      first: the context that is tried first.
      most: no longer one is tried.
    """
    from ptjax.plan.search import longest

    known: dict[int, float] = {}

    def remembered(context: int) -> float:
        if context > most:
            return math.inf
        known[context] = need(context)
        return known[context]

    accepted = longest(remembered, room, step=step, first=first)
    refused = [context for context, needed in known.items() if needed > room]
    return Longest(accepted, min(refused, default=None), known.get(accepted, 0))


def cells(asked: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Searches both ways; a row of the table for each cell.

    Args:
      asked: model, topology, method.
    """
    from ptjax import config as configs
    from ptjax.plan.search import need_of
    from ptjax.plan.topology import topology

    tokens = {False: FIRST, True: FIRST}
    for model, name, method in asked:
        where = topology(name)
        room = where.chip.memory
        assert room is not None
        found = {}
        for whole in (False, True):

            def need(context: int, where: Any = where, at: Any = (model, method, whole)) -> float:
                model, method, whole = at
                changes = settings(model, method, len(where.devices), context, whole=whole)
                needed = need_of(where)(configs.load(f"configs/{method}.py", changes))
                kind = "whole" if whole else "in chunks"
                said = f"{method} of {context:,} tokens, logits {kind}: {needed / GIB:.2f} GiB"
                print(f"{model} on {where.name}, {said}", flush=True)
                return needed

            step = max((256 if whole else 1024) // WIDTH[method], 64)
            first = tokens[whole] // WIDTH[method] // 2
            found[whole] = search(need, room, step=step, first=first, most=POSITIONS[model])
            tokens[whole] = found[whole].accepted * WIDTH[method]
        ours, theirs = found[False], found[True]
        said = f"{_said(ours)} | {_said(theirs)} | {_times(ours, theirs)}"
        yield f"| {model}, {name} | {method} | {said} |"


def _said(found: Longest) -> str:
    refused = "the model's limit" if found.refused is None else f"not {found.refused:,}"
    return f"{found.accepted:,} ({refused}; {found.need / GIB:.2f} GiB)"


def _times(ours: Longest, theirs: Longest) -> str:
    """At least so many times: against the shortest that was refused."""
    return "-" if theirs.refused is None else f"{ours.accepted / theirs.refused:.1f}"


def main() -> None:
    """Prints what was compiled, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cell", action="append", help="model,topology,method")
    given = [tuple(one.split(",")) for one in parser.parse_args().cell or ()]
    asked = given or [(*place, method) for place, method in itertools.product(PLACES, METHODS)]
    no_tpu()
    rows = []
    for row in cells(asked):
        print(f"{row}\n", flush=True)
        rows.append(row)
    print("| model, chips | method | in chunks | whole | times, at least |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
