"""Four runs that ptjax promises to fit on TPUs, each by a plan that anybody can make.

    python -m benchmarks.tpu.facts
    python -m benchmarks.tpu.facts full_8b

A fact is the arguments of `python -m ptjax.plan` and a bound on what it finds. Prints the command,
the page's first lines, what each program takes, and whether the bound holds.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ptjax.errors import UserError
from ptjax.plan import __main__ as command
from ptjax.plan.environment import no_tpu

GIB = 2**30
BATCH = "--config.data.tokens_per_batch"
LLAMA = ("--config.model.source=llama3.1-8b", "--config.model.dtype=bfloat16")
ADAPTERS = ("--config.model.param_dtype=bfloat16", "--config.model.remat=full")
ANSWERS = ("--config.data.max_length=512", "--config.rollout.max_tokens=512")


class Fact(NamedTuple):
    """A run and what it must come to.

    Attributes:
      what: in words.
      words: arguments of the command.
      bound: in words; None of a run that the documentation takes figures from.
      holds: of a plan: the number that the bound is about, and whether it holds.
    """

    what: str
    words: tuple[str, ...]
    bound: str | None = None
    holds: Callable[[dict[str, Any]], tuple[str, bool]] | None = None


def within(gib: float) -> Callable[[dict[str, Any]], tuple[str, bool]]:
    """A bound on the program that needs most."""

    def holds(plan: dict[str, Any]) -> tuple[str, bool]:
        total = plan["fits"]["total"] / GIB
        return f"{total:.2f} GiB", total <= gib

    return holds


def fits(plan: dict[str, Any]) -> tuple[str, bool]:
    """Every program fits, by what the compiler lets programs use."""
    return f"{plan['fits']['left'] / GIB:.2f} GiB left", plan["fits"]["fits"]


def groups_together(plan: dict[str, Any]) -> tuple[str, bool]:
    """All fit, with at least four groups of eight in a micro-batch of `ACCUMULATE`."""
    groups, answers, _ = plan["batch"]["tokens"]
    together = groups // ACCUMULATE
    left, all_fit = fits(plan)
    return f"{together} groups of {answers}, {left}", all_fit and answers == 8 and together >= 4


def one_copy(plan: dict[str, Any]) -> tuple[str, bool]:
    """All fit, and what a program holds beside the model has no room for a second one.

    Arguments and temporaries, keys and values left out: a second copy of what lies on a device
    would make them twice the model, and one that is gathered more. Of the train step arguments
    alone: what its backward pass needs is as large. Of any program the largest values that are made
    and have the shape of one that is given, as a kernel that is laid otherwise, come to less than a
    tenth of the model.
    """
    lies = plan["resident"]
    model = lies["frozen parameters"]
    if refused := [one["name"] for one in plan["programs"] if one["memory"] is None]:
        return f"the compiler refuses {', '.join(refused)}", False

    def held(one: dict[str, Any]) -> int:
        made = 0 if one["name"] == "train step" else one["memory"]["temporaries"]
        return one["memory"]["arguments"] + made - one["cache"]

    def copied(one: dict[str, Any]) -> int:
        given = {value["shape"] for value in one["largest"] if value["argument"]}
        made = [value for value in one["largest"] if not value["argument"]]
        return sum(one["size"] * one["times"] for one in made if one["shape"] in given)

    most = max(plan["programs"], key=held)
    anew = max(plan["programs"], key=copied)
    said = (
        f"parameters {model / GIB:.2f} GiB, most in {most['name']}: {held(most) / GIB:.2f} GiB, "
        f"made anew in {anew['name']}: {copied(anew) / GIB:.2f} GiB"
    )
    left, all_fit = fits(plan)
    single = held(most) < 2 * model and copied(anew) < model / 10
    return f"{said}, {left}", all_fit and "reference" not in lies and single


ACCUMULATE = 4
FACTS = {
    "full_8b": Fact(
        "8B, all parameters, float32 with Adam's moments, rows of 4,096 tokens",
        (
            "--config=configs/sft.py",
            "--topology=v5e:4x4",
            *LLAMA,
            "--config.model.remat=full",
            "--config.mesh.tensor=2",
            "--config.data.max_length=4096",
            "--config.data.tokens_per_batch=32768",
            "--config.data.validation=None",
        ),
        "at most 14 GiB of a chip",
        within(14),
    ),
    "dpo_70b": Fact(
        "70B, DPO of adapters, pairs of 2 x 2,048 tokens",
        (
            "--config=configs/dpo.py:lora",
            "--topology=v5p:4x4x4",
            "--config.mesh.data=4",
            "--config.model.source=llama3.1-70b",
            "--config.model.dtype=bfloat16",
            *ADAPTERS,
            "--config.data.max_length=2048",
            "--config.data.tokens_per_batch=262144",
            "--config.accumulate=1",
            "--config.data.validation=None",
        ),
        "it fits",
        fits,
    ),
    "grpo_0.6b": Fact(
        "0.6B, GRPO of all parameters, moments in 8 bits, 8 answers a prompt, 512 + 512 tokens",
        (
            "--config=configs/grpo.py",
            "--topology=v5e:1x1",
            "--config.model.source=qwen3-0.6b",
            "--config.model.dtype=bfloat16",
            "--config.model.remat=full",
            *ANSWERS,
            "--config.data.batch_size=16",
            f"--config.accumulate={ACCUMULATE}",
            "--config.rollout.rows=16",
            "--config.optim.state_bits=8",
        ),
        "it fits with at least 4 groups a micro-batch",
        groups_together,
    ),
    "grpo_8b": Fact(
        "8B, GRPO of adapters against a reference, 8 answers a prompt, 512 + 512 tokens",
        (
            "--config=configs/grpo.py:lora",
            "--topology=v5e:2x4",
            *LLAMA,
            *ADAPTERS,
            *ANSWERS,
            "--config.hparams.beta=0.04",
            "--config.data.batch_size=16",
            "--config.accumulate=2",
        ),
        "it fits with no second copy of the model",
        one_copy,
    ),
}


def planned(words: tuple[str, ...]) -> tuple[dict[str, Any], str, float]:
    """What the command writes, plan.json and the page, and the seconds that it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            command.main([*words, f"--out={folder}"])
        found = json.loads((Path(folder) / "plan.json").read_text())
        return found, (Path(folder) / "plan.md").read_text(), time.perf_counter() - began


def report(fact: Fact, plan: dict[str, Any], page: str, seconds: float) -> str:
    """The command, the page's first sections, its seconds, and whether the bound holds."""
    words = " \\\n      ".join(fact.words)
    head = page.partition("## Largest values")[0].strip()
    bound = ""
    if fact.holds:
        number, holds = fact.holds(plan)
        bound = f"{fact.bound}: {number}: {'holds' if holds else 'MISSED'}\n"
    return (
        f"{fact.what}\n\n    python -m ptjax.plan \\\n      {words}\n\n{head}\n\n"
        f"planned in {seconds:.0f} s\n{bound}"
    )


def main(
    known: Mapping[str, Fact] = FACTS, asked: Mapping[str, Fact] = MappingProxyType({})
) -> None:
    """Prints the facts that the arguments name, of those without any that are known, not asked."""
    no_tpu()
    every = {**known, **asked}
    for name in sys.argv[1:] or known:
        if name not in every:
            sys.exit(f"error: {name} is none of {', '.join(every)}")
        try:
            print(report(every[name], *planned(every[name].words)), flush=True)
        except UserError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
