"""The longest context of a step, its head in chunks and its logits whole, by the TPU compiler.

    python -m benchmarks.tpu.contexts                                    # all cells, an hour or two
    python -m benchmarks.tpu.contexts --cell=qwen3-0.6b,v5e:1x1,grpo

An optimizer step of one example a device: a text, a pair of texts or a prompt with 8 answers, all
as long as the context (of an answer one half is its prompt, which stands once). All parameters are
trained, float32 with Adam's moments; activations are bfloat16, `model.remat="minimal"`. *Whole* is
the same step with `model.head_chunk` of all tokens: their logits exist at once. A model of the
memory proposes a first context, lines through what was compiled the next; compilations confirm. In
a cell stand the longest context that the compiler accepts and the shortest that it refused, both
found to a sixteenth or so; *times* is ours over the shortest that it refused of the other. Some are
longer than what the models were made for: what fits is asked, not what is of use.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ptjax.models import families, spec
from ptjax.plan.environment import no_tpu

GIB = 2**30
PLACES = (("qwen3-0.6b", "v5e:1x1"), ("llama3.1-8b", "v5e:4x4"), ("llama3.1-8b", "v5p:2x2x1"))
METHODS = ("sft", "dpo", "grpo")
SEQUENCES = {"sft": 1, "dpo": 2, "grpo": 8}
"""Of an example."""
ROW = {"sft": 1.0, "dpo": 2.0, "grpo": 4.5}
"""An example's tokens, in contexts."""
LOGITS = {"sft": 1.0, "dpo": 2.0, "grpo": 4.0}
"""Those of which a logit is asked."""
_TOKEN = (19, 35_000)
"""Bytes of a token in a layer's backward pass, a unit of the model's width and beside it, by what
two models came to."""
_STATE = 16
"""Bytes of a parameter: itself, two moments and its gradient."""


class Longest(NamedTuple):
    """What a search came to.

    Attributes:
      accepted: tokens of the longest context that the compiler accepted, 0 for none.
      refused: of the shortest that it refused.
      need: bytes of a device that the accepted one takes.
    """

    accepted: int
    refused: int
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
        given["model.head_chunk"] = SEQUENCES[method] * context
    if method == "grpo":
        answer = context // 2
        sizes = {"data.max_length": context - answer, "rollout.max_tokens": answer}
        return given | sizes | {"data.batch_size": devices, "rollout.n": SEQUENCES[method]}
    row = SEQUENCES[method] * context
    if method == "dpo":
        given["reference.mode"] = "cached"
    return given | {"data.tokens_per_batch": devices * row, "data.row_length": row}


def proposed(model: str, method: str, devices: int, room: int, *, whole: bool) -> int:
    """A context that might fit, by a model of the memory.

    Args:
      model: an architecture's name.
      method: one of `METHODS`.
      devices: over which `fsdp` goes.
      room: bytes of a device.
      whole: whether all logits exist at once.
    """
    from ptjax.plan.architectures import architecture

    config = architecture(model)
    shapes = (spec.shape(row, config.dims) for row in families.table(config).values())
    state = _STATE * sum(map(math.prod, shapes)) / devices
    token = ROW[method] * (_TOKEN[0] * config.embed + _TOKEN[1])
    if whole:
        token += LOGITS[method] * 4 * config.vocab
    return int((room - state) / token)


def search(need: Callable[[int], float], room: int, first: int) -> Longest:
    """The longest context whose need is within the room, to a sixteenth of the first or so.

    Args:
      need: bytes of a device, of a context's tokens; compiles.
      room: bytes of a device.
      first: the context that is tried first.
    """
    from ptjax.plan.search import longest

    known: dict[int, float] = {}

    def remembered(context: int) -> float:
        known[context] = need(context)
        return known[context]

    step = max(2 ** round(math.log2(first / 16)), 64)
    accepted = longest(remembered, room, step=step, first=first)
    refused = min(context for context, needed in known.items() if needed > room)
    return Longest(accepted, refused, known.get(accepted, 0))


def cells(asked: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Searches both ways; a row of the table for each cell.

    Args:
      asked: model, topology, method.
    """
    from ptjax import config as configs
    from ptjax.plan.search import need_of
    from ptjax.plan.topology import topology

    for model, name, method in asked:
        where = topology(name)
        room, devices = where.chip.memory, len(where.devices)
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

            first = proposed(model, method, devices, room, whole=whole)
            found[whole] = search(need, room, first)
        ours, theirs = found[False], found[True]
        times = ours.accepted / theirs.refused
        yield f"| {model}, {name} | {method} | {_said(ours)} | {_said(theirs)} | {times:.1f} |"


def _said(found: Longest) -> str:
    return f"{found.accepted:,} (not {found.refused:,}; {found.need / GIB:.2f} GiB)"


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
