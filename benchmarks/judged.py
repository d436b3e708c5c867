"""What reward models, DPO, process rewards and embeddings learn of real judgements, held out.

    python -m benchmarks.judged reward --data=testset-v1.json --out=runs/judged
    python -m benchmarks.judged dpo --data=testset-v1.json --out=runs/judged
    python -m benchmarks.judged process --data=multistep_arithmetic.jsonl --out=runs/judged
    python -m benchmarks.judged embed --data=train.jsonl --out=runs/judged

`reward` and `dpo` read PandaLM's test set (WeOpenML/PandaLM, data/testset-v1.json: pairs that three
people judged each; those without a majority are left out) or LLaMA-Factory's `dpo_en_demo.json`;
`process` reads BIG-Bench Mistake (WHGTyen/BIG-Bench-Mistake: chains of thought with the place of
the first mistake; a row that is cut before it is left out and counted); `embed` reads JSONL with
`prompt`, of which an Alpaca preamble is taken off, and `response`, and pools by the mean. A quarter
of the prompts, chosen by the seed, is held out with all that was answered to them: PandaLM judges
many answers to one. SmolLM2-135M-Instruct with LoRA of rank 16, one or two passes, minutes on two
CPU cores. Intervals are of 95%: of pairs by a bootstrap over prompts, else Wilson's; before and
after are compared query by query, by exact sign tests. What length alone would get is of whole
answers, whatever `--max_length` leaves of them.
"""

import argparse
import json
import random
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.intervals import by_cluster, sign_test, wilson
from ptjax import sharding
from ptjax.config import defaults, lora
from ptjax.forward import ForwardOptions, forward_in_parts, last_scores
from ptjax.loop import Result, train
from ptjax.passes import compute
from ptjax.prepare import prepare

SHARE = 4
"""One prompt in so many is held out."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, help="folder of converted data and the run")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--limit", type=int, help="rows at the most")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--max_length", type=int, default=384)
    parser.add_argument("--tokens_per_batch", type=int, default=3072)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def rows_of(task: str, path: str) -> list[dict[str, Any]]:
    """The file's rows in a form that ptjax reads."""
    text = Path(path).read_text(encoding="utf-8")
    given = json.loads(text) if text.lstrip().startswith("[") else None
    if given is None:
        given = [json.loads(line) for line in text.splitlines() if line.strip()]
    if task in ("reward", "dpo"):
        return [row for row in map(_pair, given) if row is not None]
    if task == "process":
        return [_steps(row) for row in given]
    return [{"query": _instruction(row["prompt"]), "positive": row["response"]} for row in given]


def _instruction(prompt: str) -> str:
    """What is asked, without the words of Alpaca's template that all prompts share."""
    found = re.search(r"### Instruction:\n(.*?)\s*(?:### Response:\s*)?\Z", prompt, re.DOTALL)
    return found[1] if found else prompt


def _pair(row: dict[str, Any]) -> dict[str, Any] | None:
    if "annotator1" not in row:
        return row
    votes = Counter(str(row[f"annotator{i}"]) for i in (1, 2, 3))
    best, count = votes.most_common(1)[0]
    if count < 2 or best not in ("1", "2"):
        return None
    prompt = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
    worse = "2" if best == "1" else "1"
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": str(row[f"response{best}"])}],
        "rejected": [{"role": "assistant", "content": str(row[f"response{worse}"])}],
    }


def _steps(row: dict[str, Any]) -> dict[str, Any]:
    """Steps are good before the first mistake, and not from it on."""
    steps, mistake = row["steps"], row["mistake_index"]
    good = len(steps) if mistake is None else mistake
    labels = [i < good for i in range(len(steps))]
    prompt = [{"role": "user", "content": row["input"]}]
    return {"prompt": prompt, "completions": steps, "labels": labels}


def split(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What is held out and what is trained on, by prompt: none stands in both."""
    groups = defaultdict(list)
    for row in rows:
        groups[asked(row)].append(row)
    parts: dict[str, list[dict[str, Any]]] = {"held_out": [], "train": []}
    for place, group in enumerate(groups.values()):
        parts["train" if place % SHARE else "held_out"] += group
    return parts


def asked(row: dict[str, Any]) -> str:
    """A row's prompt, as one text."""
    return json.dumps(
        next(row[name] for name in ("query", "prompt", "conversations") if name in row)
    )


def run(args: argparse.Namespace) -> tuple[Any, Result]:
    """Trains, and gives what was prepared and what came of it."""
    folder = Path(args.out) / args.task
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(args.task, args.data)
    random.Random(args.seed).shuffle(rows)
    for name, part in split(rows[: args.limit]).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = defaults()
    config.method = {"process": "process_reward"}.get(args.task, args.task)
    config.model.source = args.model
    config.lora = lora(rank=16, alpha=32.0)
    config.seed = args.seed
    config.epochs = args.epochs
    config.optim.learning_rate = args.learning_rate
    config.data.sources = [{"path": str(folder / "train.jsonl")}]
    config.data.validation = [{"path": str(folder / "held_out.jsonl")}]
    config.data.max_length = args.max_length
    config.data.on_empty = "drop"
    config.data.tokens_per_batch = args.tokens_per_batch
    config.checkpoint.every = 0
    config.eval.every = 0
    config.log.tensorboard = False
    if args.task == "reward":
        config.data.truncate = "start"
    if args.task == "embed":
        config.model.pooling = "mean"
    return prepare(config), train(config, str(folder / "run"))


def outputs(job: Any, params: Any, fields: tuple[str, ...], examples: Any = None) -> Any:
    """(batch, outputs) for each batch of these held-out examples; None: of all."""
    options = ForwardOptions(
        compute=compute(job.config),
        head_chunk=job.config.model.head_chunk,
        pooling=job.config.model.pooling,
    )

    def one(params: Any, batch: Any) -> Any:
        return forward_in_parts(
            job.bundle.model, params, batch, fields=fields, accumulate=1, options=options
        )

    run_one = jax.jit(one)
    with jax.set_mesh(job.mesh):
        for batch in job.pipeline.once(job.pipeline.held_out if examples is None else examples):
            yield batch, run_one(params, sharding.put_batch(batch.columns, job.mesh))


def share(right: Any, cluster: list[str] | None = None) -> str:
    """A share with its interval; `cluster` says which answers hang together."""
    right = np.asarray(right, bool)
    good, count = int(right.sum()), right.size
    if not count:
        return "none there"
    low, high = wilson(good, count) if cluster is None else by_cluster(right, cluster)
    return f"{good / count:.1%} ({low:.1%} to {high:.1%}, {good} of {count})"


def pairs(job: Any, result: Result, reference: Any = None) -> dict[str, str]:
    """Accuracy of a scorer's rewards or of DPO's implied ones, and of length alone."""
    scored = job.bound.algorithm.head == "score"
    right, order = [], []
    base = outputs(job, reference, ("logps",)) if reference is not None else None
    for batch, found in outputs(job, result.bundle.params, ("scores" if scored else "logps",)):
        columns = batch.columns
        if scored:
            rewards = np.asarray(last_scores(found.scores, jnp.asarray(columns["valid"])))
        else:
            assert base is not None
            _, before = next(base)
            rewards = np.asarray(found.logps - before.logps).sum(-1)
        real = columns["weights"][:, 0] > 0
        right += (rewards[:, 0] > rewards[:, 1])[real].tolist()
        order += np.asarray(batch.examples)[real].tolist()
    held_out = job.pipeline.held_out
    prompts = [asked(held_out.content(i)) for i in range(len(held_out))]
    chosen, rejected = _whole_lengths(held_out).T
    unequal = np.flatnonzero(chosen != rejected)
    longer = (chosen > rejected)[unequal]
    by_length = longer if longer.mean() >= 0.5 else ~longer
    return {
        "held-out accuracy": share(right, [prompts[i] for i in order]),
        "the better of longer and shorter": share(by_length, [prompts[i] for i in unequal]),
        "chance": "50.0%",
        "prompts held out": str(len(set(prompts))),
    }


def _whole_lengths(examples: Any) -> np.ndarray:
    """Tokens of both sides before they were cut, their common prompt included, [E, 2]."""
    (source,) = examples.encodings
    first = np.searchsorted(source.sequences.rows, examples.row)
    return source.sequences.lengths[first[:, None] + np.arange(2)]


def process(job: Any, result: Result, before: Any = None) -> dict[str, str]:
    """How often the first step of a negative score is the first mistake, none counting as well.

    And of single steps how many verdicts are right: of all, before and after training, and of bad
    and of good steps apart.
    """
    examples = job.pipeline.held_out
    given = [examples.content(i)["labels"] for i in range(len(examples))]
    mistakes = [_first_bad(np.asarray(labels, bool)) for labels in given]
    left = examples.trained[:, 0]
    seen = [i for i, bad in enumerate(mistakes) if bad is None or bad < left[i]]
    count = len(examples.encodings[0].rows)
    chosen = examples.take(np.asarray(seen))
    judged = verdicts(job, result.bundle.params, chosen)
    labels, said = (np.concatenate(part) for part in zip(*judged, strict=True))
    first = zip(*verdicts(job, before, chosen), strict=True)
    _, said_before = (np.concatenate(part) for part in first)
    return {
        "first mistake found": share([_first_bad(good) == _first_bad(x) for good, x in judged]),
        "always the last step": share([mistakes[i] == len(given[i]) - 1 for i in seen]),
        "always the first step": share([mistakes[i] == 0 for i in seen]),
        "chance": f"{np.mean([1 / (len(given[i]) + 1) for i in seen]):.1%}",
        "steps judged right before training": share(labels == said_before),
        "steps judged right": share(labels == said),
        "bad steps judged right": share(~said[~labels]),
        "good steps judged right": share(said[labels]),
        "calling all steps good": share(labels),
        "left out: cut before the first mistake": f"{count - len(seen)} of {count}",
    }


def verdicts(job: Any, params: Any, examples: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """By solution, its steps' labels and what a model says of them, True for right."""
    found = []
    for batch, out in outputs(job, params, ("scores",), examples):
        columns, scores = batch.columns, np.asarray(out.scores)
        for row in np.flatnonzero(columns["weights"][:, 0] > 0):
            where = np.flatnonzero(columns["mask"][row, 0])
            labels = columns["labels"][row, 0, where] > 0.5
            found.append((labels, scores[row, 0, where] > 0))
    return found


def _first_bad(good: np.ndarray) -> int | None:
    bad = np.flatnonzero(~good)
    return int(bad[0]) if len(bad) else None


def embed(job: Any, result: Result, before: Any = None) -> dict[str, str]:
    """How often a held-out query's own positive is the nearest of all held-out positives."""
    told, ranks = {"pooling": job.config.model.pooling}, {}
    for name, params in (("before", before), ("after", result.bundle.params)):
        queries, positives = [], []
        for batch, found in outputs(job, params, ("embedding",)):
            real = batch.columns["weights"][:, 0] > 0
            vectors = np.asarray(found.embedding)[real]
            vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
            queries.append(vectors[:, 0])
            positives.append(vectors[:, 1])
        similarity = np.concatenate(queries) @ np.concatenate(positives).T
        own = np.diagonal(similarity)[:, None]
        rank = ranks[name] = (similarity > own).sum(1)
        told[f"own answer nearest, {name}"] = share(rank == 0)
        told[f"own answer in the nearest ten, {name}"] = share(rank < 10)
        told[f"mean reciprocal rank, {name}"] = f"{np.mean(1 / (1 + rank)):.3f}"
    first, then = ranks["before"], ranks["after"]
    return told | {
        "nearest after training alone, before alone": _against(
            (then == 0) > (first == 0), (first == 0) > (then == 0)
        ),
        "own answer ranks higher, lower than before": _against(then < first, then > first),
        "chance": f"{1 / len(first):.1%} of {len(first)}",
    }


def _against(better: np.ndarray, worse: np.ndarray) -> str:
    """So many against so many, and how likely a difference as large is by chance."""
    won, lost = int(better.sum()), int(worse.sum())
    return f"{won} against {lost} (exact sign test: p = {sign_test(won, lost):.3g})"


TASKS = {"reward": pairs, "dpo": pairs, "process": process, "embed": embed}


def main() -> None:
    """Trains, judges, prints a table and writes it beside the run."""
    args, began = arguments(), time.perf_counter()
    job, result = run(args)
    fresh = job.state.merged() if args.task != "reward" else None
    told = TASKS[args.task](job, result, fresh)
    told["all of it took"] = f"{(time.perf_counter() - began) / 60:.1f} minutes"
    lines = [f"{name:<44} {value}" for name, value in told.items()]
    (Path(args.out) / args.task / "judged.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
