"""The longest context of a step, its head in chunks and its logits whole, by the TPU compiler.

    python -m benchmarks.tpu.contexts                                    # all cells, an hour or two
    python -m benchmarks.tpu.contexts --cell=qwen3-0.6b,v5e:1x1,grpo

An optimizer step of one example a device: a text, a pair of texts or a prompt with 8 answers, all
as long as the context (of an answer one half is its prompt, which stands once). All parameters are
trained, float32 with Adam's moments; activations are bfloat16, `model.remat="minimal"`. *Whole* is
the same step with `model.head_chunk` of all tokens: their logits exist at once. A model of the
memory proposes a first context, lines through what was compiled the next; compilations confirm.
What a host has no memory for is refused without one. In a cell stand the longest context that was
accepted and the shortest that was refused, no more than a sixth apart; *times* is ours over the
shortest that was refused of the other. Some are longer than what the models were made for: what
fits is asked, not what is of use.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

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
HOST = {"v5e": 48e9, "v5p": 112e9}
"""Bytes of the host's memory for a chip: of Google Cloud's ct5lp-hightpu and ct5p-hightpu-4t."""
_TOKEN = (23, 19_000)
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


def token_bytes(model: str, method: str, *, whole: bool) -> float:
    """Of a device for a token more of the context, by a model of the memory."""
    from ptjax.plan.architectures import architecture

    config = architecture(model)
    layer = ROW[method] * (_TOKEN[0] * config.embed + _TOKEN[1])
    return layer + whole * LOGITS[method] * 4 * config.vocab


def state_bytes(model: str, devices: int) -> float:
    """Of a device for parameters, moments and gradients."""
    from ptjax.models import families, spec
    from ptjax.plan.architectures import architecture

    config = architecture(model)
    shapes = (spec.shape(row, config.dims) for row in families.table(config).values())
    return _STATE * sum(map(math.prod, shapes)) / devices


def host_bytes(model: str, method: str, context: int) -> float:
    """Of a device's share of its host's memory: the hidden states that enter each layer."""
    from ptjax.plan.architectures import architecture

    config = architecture(model)
    return 2 * config.embed * config.layers * ROW[method] * context


def search(need: Callable[[int], float], room: int, first: float, token: float) -> Longest:
    """The longest context whose need is within the room, to a sixth.

    Args:
      need: bytes of a device, of a context's tokens; compiles.
      room: bytes of a device.
      first: the context that is tried first.
      token: bytes of a token, where what is known lies on no line that rises.
    """
    from ptjax.plan.search import meets

    known: dict[int, float] = {}
    at = first
    while True:
        step = 64 if at < 8192 else 512  # what fills no block of attention is padded
        context = max(round(at / step), 1) * step
        known[context] = need(context)
        low = max((one for one, needed in known.items() if needed <= room), default=0)
        high = min((one for one, needed in known.items() if needed > room), default=0)
        if low and high and high - low <= max(high / 6, step):
            return Longest(low, high, known[low])
        limit = meets(known, room)
        if limit is None:
            limit = context + (room - known[context]) / token
        if not high:
            at = min(max(1.04 * limit, 1.08 * low), 3 * low)
        elif not low:
            at = max(min(0.96 * limit, 0.92 * high), high / 3)
        else:
            at = min(max(limit, 0.75 * low + 0.25 * high), 0.25 * low + 0.75 * high)


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
        found, share = {}, HOST[name.partition(":")[0]]
        for whole in (False, True):

            def need(context: int, at: Any = (model, method, whole, where, room, share)) -> float:
                model, method, whole, where, room, share = at
                away = host_bytes(model, method, context)
                if away > share:
                    said = f"{method} of {context:,} tokens: {away / GIB:.1f} GiB of its host's"
                    print(f"{model} on {where.name}, {said}, of {share / GIB:.1f}", flush=True)
                    return room * away / share
                changes = settings(model, method, len(where.devices), context, whole=whole)
                needed = need_of(where)(configs.load(f"configs/{method}.py", changes))
                kind = "whole" if whole else "in chunks"
                said = f"{method} of {context:,} tokens, logits {kind}: {needed / GIB:.2f} GiB"
                print(f"{model} on {where.name}, {said}", flush=True)
                return needed

            token = token_bytes(model, method, whole=whole)
            first = (room - state_bytes(model, devices)) / token
            first = min(first, 0.97 * share / host_bytes(model, method, 1))
            found[whole] = search(need, room, first, token)
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
