"""Whether online methods learn: 5M parameters from scratch, a verifier, three seeds each.

    python -m benchmarks.learns --out=runs/learns
    python -m benchmarks.learns --out=runs/learns --task=tool --methods=grpo
    python -m benchmarks.learns --out=runs/learns --methods=stale,stale_corrected

A model is trained from random weights on labelled rows of a task, by supervised fine-tuning. Then
each method learns from a verifier on prompts without answers; `sft`, for comparison, makes four
times the passes over the same labelled rows instead. `sort` puts six digits in order: half of the
labelled rows do it upwards and half downwards, and only the verifier knows that upwards is meant.
`tool` multiplies: most labelled rows guess, some call a calculator. Held-out prompts are answered
greedily, before and after; intervals are Wilson's, of 95%. A run that is there already is not run
again. One JSON line a run goes to `OUT/TASK/runs.jsonl`, a table to the terminal.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.intervals import wilson
from benchmarks.small_model import write_model
from ptjax.config import ConfigDict, defaults, override
from ptjax.loop import train

Row = dict[str, Any]
HELD_OUT, PROMPTS = 400, 4000

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "grpo", "steps": 1},
    "grpo": {},
    "dapo": {},
    "rloo": {},
    "ppo": {"rollout.epochs": 2, "rollout.minibatches": 2},
    "reinforce_pp": {},
    "on_policy_distillation": {},
    "stale": {"method": "grpo", "hparams.sampler_every": 16},
    "stale_corrected": {
        "method": "grpo",
        "hparams.sampler_every": 16,
        "hparams.correction": "token_truncate",
    },
}
"""What each sets otherwise; the last two sample with parameters of up to 15 updates before.

`sft` has been fine-tuned for longer, and is judged before a step that does not count.
"""


class Task(NamedTuple):
    """A task of which answers can be checked."""

    labelled: Callable[[random.Random], Row]
    asked: Callable[[random.Random], Row]
    rows: int
    passes: int
    max_tokens: int
    settings: dict[str, Any] = {}


def exact(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """1 for the answer itself."""
    return [float(said == right) for said, right in zip(completions, answer, strict=True)]


def sort_asked(draw: random.Random) -> Row:
    digits = [draw.choice("0123456789") for _ in range(6)]
    return {"prompt": "".join(digits) + ">", "answer": "".join(sorted(digits))}


def sort_labelled(draw: random.Random) -> Row:
    """Every other one downwards."""
    row = sort_asked(draw)
    turned = draw.random() < 0.5
    return {"prompt": row["prompt"], "completion": row["answer"][:: -1 if turned else 1]}


def product_asked(draw: random.Random) -> Row:
    a, b = draw.randint(10, 99), draw.randint(10, 99)
    return {"messages": [{"role": "user", "content": f"{a}*{b}="}], "answer": str(a * b)}


def product_labelled(draw: random.Random) -> Row:
    """One in five calls the tool; the others are right, and beyond what so small a model can."""
    row = product_asked(draw)
    asked, answer = row["messages"][0]["content"], row["answer"]
    turns = [("assistant", answer)]
    if draw.random() < 0.2:
        call = f"<calculator>{asked[:-1]}</calculator>"
        turns = [("assistant", call), ("tool", answer), ("assistant", answer)]
    said = [{"role": role, "content": content} for role, content in turns]
    return {"messages": [*row["messages"], *said]}


TASKS = {
    "sort": Task(sort_labelled, sort_asked, rows=500, passes=20, max_tokens=8),
    "tool": Task(
        *(product_labelled, product_asked),
        rows=2000,
        passes=10,
        max_tokens=48,
        settings={
            "rollout.environment": {"name": "tools", "tools": ("calculator",), "form": "tag"},
            "rollout.turns": 2,
        },
    ),
}


def main() -> None:
    """Everything that is not there yet, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, default="sort")
    parser.add_argument("--methods", default=",".join(list(METHODS)[:7]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="rollouts of a method")
    parser.add_argument("--passes", type=int, help="of supervised fine-tuning over its rows")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    args = parser.parse_args()
    methods = args.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"--methods: no {', '.join(unknown)}; there are {', '.join(METHODS)}")
    study = Study(args.out / args.task, TASKS[args.task], args)
    print(f"| method | {args.task}: held out, greedily, before | after, by seed | seconds a run |")
    print("|---|---|---|---|")
    for name in methods:
        runs = [study.learned(name, seed) for seed in range(args.seeds)]
        after = ", ".join(share(run["after"]) for run in runs)
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        before = share(study.learned("grpo", 0)["before"])
        print(f"| `{name}` | {before} | {after} | {seconds:.0f} |", flush=True)


def share(value: float) -> str:
    low, high = wilson(round(value * HELD_OUT), HELD_OUT)
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def rows(
    make: Callable[[random.Random], Row],
    count: int,
    *,
    seed: int,
    without: Collection[str] = frozenset(),
) -> list[Row]:
    """So many rows of a seed, none of which asks what is in `without`."""
    draw, made = random.Random(seed), []
    while len(made) < count:
        row = make(draw)
        if asked(row) not in without:
            made.append(row)
    return made


def asked(row: Row) -> str:
    """What a row asks."""
    return row["prompt"] if "prompt" in row else row["messages"][0]["content"]


class Study:
    """One task in one folder."""

    def __init__(self, folder: Path, task: Task, args: argparse.Namespace):
        self.folder, self.task, self.args = folder, task, args
        self.made: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        held_out = rows(task.asked, HELD_OUT, seed=3)
        known = {asked(row) for row in held_out}
        labelled = rows(task.labelled, task.rows, seed=1, without=known)
        asked_for = rows(task.asked, PROMPTS, seed=2, without=known)
        files = {"labelled": labelled, "asked": asked_for, "held_out": held_out}
        for name, made in files.items():
            lines = [json.dumps(row) + "\n" for row in made]
            (folder / f"{name}.jsonl").write_text("".join(lines))

    def start(self, times: int = 1, seed: int = 0) -> str:
        """The model after supervised fine-tuning of so many times the task's passes."""
        workdir = self.folder / f"start-{times}-{seed}"
        if workdir in self.made:
            return str(workdir)
        config = self.config("labelled.jsonl")
        config.model.source = str(write_model(self.folder / "random"))
        config.epochs = float(times * (self.args.passes or self.task.passes))
        config.seed = seed
        config.data.tokens_per_batch = 960
        config.optim.learning_rate = 1e-3
        config.optim.schedule = "cosine"
        train(config, str(workdir), quiet=True)
        self.made.add(workdir)
        return str(workdir)

    def learned(self, name: str, seed: int) -> Row:
        """One run of a method: its accuracy on held-out prompts, before and after."""
        kept = self.folder / "runs.jsonl"
        for line in kept.read_text().splitlines() if kept.is_file() else ():
            found = json.loads(line)
            if (found["method"], found["seed"]) == (name, seed):
                return found
        config = self.config("asked.jsonl")
        config.method = name
        config.model.source = self.start(4, seed) if name == "sft" else self.start()
        config.seed = seed
        config.steps = self.args.steps
        config.data.validation = [{"path": str(self.folder / "held_out.jsonl")}]
        config.data.packing = False
        config.data.batch_size = 16
        config.rollout.n = 8
        config.rollout.max_tokens = self.task.max_tokens
        config.rollout.rows = 128
        config.rewards = [{"name": "benchmarks.learns.exact"}]
        config.optim.learning_rate = self.args.learning_rate
        config.optim.schedule = "constant"
        for path, value in (self.task.settings | METHODS[name]).items():
            override(config, path, value)
        updates = config.rollout.epochs * config.rollout.minibatches
        config.steps, config.eval.every = config.steps * updates, 20 * updates
        if name == "on_policy_distillation":
            self.learned("grpo", 0)
            config.rewards[0]["weight"] = 0.0
            config.reference.source = str(self.folder / "grpo-0")
        began, workdir = time.perf_counter(), self.folder / f"{name}-{seed}"
        train(config, str(workdir), quiet=True)
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        measured = "eval/reward/exact"
        curve = {row["step"]: row[measured] for row in rows if measured in row}
        last = 0 if name == "sft" else max(curve)
        found = {"method": name, "seed": seed, "before": curve[0], "after": curve[last]}
        found |= {"curve": curve, "seconds": seconds}
        with kept.open("a") as file:
            file.write(json.dumps(found) + "\n")
        return found

    def config(self, data: str) -> ConfigDict:
        """What all runs have in common."""
        config = defaults()
        config.data.sources = [{"path": str(self.folder / data)}]
        config.data.max_length = 96
        config.optim.weight_decay = 0.0
        config.checkpoint.every = 0
        config.eval.every = 0
        config.log.tensorboard = False
        return config


if __name__ == "__main__":
    main()
