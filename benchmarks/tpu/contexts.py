"""The longest context of a step, its head in chunks and its logits whole, by the TPU compiler.

    python -m benchmarks.tpu.contexts                                    # all cells, an hour or two
    python -m benchmarks.tpu.contexts --cell=qwen3-0.6b,v5e:1x1,grpo

An optimizer step of one example a device: a text, a pair of texts or a prompt with 8 answers, all
as long as the context (of an answer one half is its prompt). All parameters are trained, float32
with Adam's moments; activations are bfloat16, each layer is computed again. *Whole* is the same
step with `model.head_chunk` of all tokens: their logits exist at once. A line through what two
numbers of tokens need proposes the longest context, and a few compilations around it confirm: the
longest that the compiler accepts, and the shortest that it refused.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ptjax.plan.environment import no_tpu

GIB = 2**30
STEP = 128
"""Tokens between two contexts that are tried."""
CLOSE = 1.06
"""Refused over accepted at which a search ends."""
TRIALS = 4
PLACES = (("qwen3-0.6b", "v5e:1x1"), ("llama3.1-8b", "v5e:4x4"), ("llama3.1-8b", "v5p:2x2x1"))
METHODS = ("sft", "dpo", "grpo")
POSITIONS = {"qwen3-0.6b": 40_960, "llama3.1-8b": 131_072}
"""What the models were made for."""
WIDTH = {"sft": 1, "dpo": 2, "grpo": 8}
"""Sequences of an example."""


class Line(NamedTuple):
    """Bytes of a device by the tokens on it: what two compilations suggest.

    Attributes:
      base: without any.
      each: of one.
    """

    base: float
    each: float


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


def line(need: Callable[[int], int], tokens: tuple[int, int]) -> Line:
    """Lays a line through what two numbers of tokens need; compiles both."""
    short, long = tokens
    least, most = need(short), need(long)
    each = (most - least) / (long - short)
    return Line(least - each * short, each)


def longest(need: Callable[[int], int], room: int, proposed: float, most: int) -> Longest:
    """The longest context whose need is within the room, by a few compilations around a proposal.

    Args:
      need: bytes of a device, of a context's tokens; compiles.
      room: bytes of a device.
      proposed: tokens.
      most: no longer context is tried.
    """
    fine, refused, needed = 0, None, 0
    for _ in range(TRIALS):
        context = min(max(round(proposed / STEP), 1) * STEP, most)
        bytes_of = need(context)
        if bytes_of <= room:
            fine, needed = context, bytes_of
        else:
            refused = context
        if fine == most or (refused and refused <= max(CLOSE * fine, fine + STEP)):
            break
        if refused and fine:
            proposed = (fine + refused) / 2
        else:
            proposed = max(fine * CLOSE, fine + STEP) if fine else context / CLOSE - STEP / 2
    return Longest(fine, refused, needed)


def cells(asked: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Searches both ways; a row of the table for each cell. A line serves all methods of a place.

    Args:
      asked: model, topology, method.
    """
    from ptjax import config as configs
    from ptjax.plan.search import need_of
    from ptjax.plan.topology import topology

    lines: dict[tuple[str, str, bool], Line] = {}
    for model, name, method in asked:
        where = topology(name)
        compiled, room = need_of(where), where.chip.memory
        assert room is not None
        found = {}
        for whole in (False, True):

            def need(
                context: int,
                method: str = method,
                at: tuple[str, str, bool] = (model, name, whole),
                compiled: Callable[[Any], int] = compiled,
                devices: int = len(where.devices),
            ) -> int:
                changes = settings(at[0], method, devices, context, whole=at[2])
                needed = compiled(configs.load(f"configs/{method}.py", changes))
                logits = "whole" if at[2] else "in chunks"
                said = f"{method} of {context:,} tokens, logits {logits}: {needed / GIB:.2f} GiB"
                print(f"{at[0]} on {at[1]}, {said}", flush=True)
                return needed

            key = (model, name, whole)
            if key not in lines:
                short = (1024, 2048) if whole else (2048, 4096)
                lines[key] = line(functools.partial(need, method="sft"), short)
            proposed = (room - lines[key].base) / lines[key].each / WIDTH[method]
            found[whole] = longest(need, room, proposed, POSITIONS[model])
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
