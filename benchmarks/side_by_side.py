"""What the drivers that run beside a peer have in common: one of our runs, the pairs, the table.

A run is a fresh process that prints one JSON line. The runs are interleaved, ours and theirs in
turn, and what is compared is the ratio within each pair. With `--out` every line is kept, with the
kind of its pair and its round.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PEERS = Path(__file__).parent / "peers"
Pair = tuple[dict[str, Any], dict[str, Any]]
"""The JSON lines of a run of ours and of the peer's beside it."""


class Kind(NamedTuple):
    """One row of the table: its name, and what each side's command line has more."""

    name: str
    ours: list[str]
    theirs: list[str]


def parser(doc: str) -> argparse.ArgumentParser:
    """The command line that all drivers have."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--model", required=True, help="a folder in the Hugging Face layout")
    made.add_argument("--data", required=True, help="JSONL, which `make_data.py` makes")
    made.add_argument("--peer_python", help="python of the peer's environment")
    made.add_argument("--mode", choices=("compare", "ours"), default="compare")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--steps", type=int, default=6, help="of a run, warm-up included")
    made.add_argument("--warmup", type=int, default=2, help="first steps that are not measured")
    made.add_argument("--out", help="a file to add the JSON line of every run to")
    return made


def training_parser(doc: str) -> argparse.ArgumentParser:
    """The same with what those that train have more."""
    made = parser(doc)
    made.add_argument("--train", choices=("full", "lora"), help="one kind only")
    made.add_argument("--tokens_per_batch", type=int, default=2048, help="ours")
    made.add_argument("--accumulate", type=int, default=2, help="ours")
    made.add_argument("--remat", default="dots_and_attention", help="ours")
    made.add_argument("--max_length", type=int, default=1024)
    made.add_argument("--profile", help="ours: folder for a trace of the last step")
    return made


def our_config(args: argparse.Namespace):
    """A run's config as far as all drivers have it alike."""
    from ptjax.config import defaults, lora

    config = defaults()
    config.model.source = args.model
    config.model.remat = args.remat
    config.data.sources = [{"path": args.data}]
    config.data.on_empty = "drop"
    config.data.max_length = args.max_length
    config.data.tokens_per_batch = args.tokens_per_batch
    config.accumulate = args.accumulate
    config.steps = args.steps
    if args.train == "lora":
        config.lora = lora(rank=16, alpha=32.0)
    return config


def ours(args: argparse.Namespace, config) -> dict[str, Any]:
    """Trains with ptjax, step by step as the loop does, and says what it took."""
    import jax

    from ptjax import sharding
    from ptjax.prepare import prepare

    begun = time.perf_counter()
    run = prepare(config)
    prepared = time.perf_counter() - begun
    state, batches = run.state, run.pipeline.train()
    run.state = None  # the step donates it
    loaded = peak_mb()
    walls, cpus, tokens, trained, losses, host = [], [], [], [], [], []
    with jax.set_mesh(run.mesh):
        for step in range(args.steps):
            if args.profile and step == args.steps - 1:
                jax.profiler.start_trace(args.profile)
            wall, cpu = time.perf_counter(), time.process_time()
            batch = sharding.put_batch(next(batches).columns, run.mesh)
            batch, carry, *_ = run.stage(state, batch, step=step)
            state, logged = run.train_step(state.replace(carry=carry), batch)
            host.append(time.perf_counter() - wall)
            logged = jax.device_get(logged)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
            tokens.append(int(logged["tokens"]))
            trained.append(int(logged["trained_tokens"]))
            losses.append(float(logged["loss"]))
    if args.profile:
        jax.profiler.stop_trace()
        with jax.set_mesh(run.mesh):
            program = run.train_step.lower(state, batch).compile().as_text()
        (Path(args.profile) / "program.txt").write_text(program)
    kept = slice(args.warmup, None)
    return {
        "peer": "ptjax",
        "train": args.train,
        "tokens": sum(tokens[kept]),
        "slots": args.tokens_per_batch * len(tokens[kept]),
        "trained": sum(trained[kept]),
        "seconds": round(sum(walls[kept]), 3),
        "cpu_seconds": round(sum(cpus[kept]), 3),
        "prepare_seconds": round(prepared, 3),
        "rss_mb": round(peak_mb(), 1),
        "rss_loaded_mb": round(loaded, 1),
        "host_ms": round(1000 * statistics.median(host[kept]), 2),
        "losses": [round(loss, 4) for loss in losses],
        "compilations": run.train_step._cache_size(),
    }


def peak_mb() -> float:
    """The process's peak resident memory, in 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    args: argparse.Namespace,
    one: Callable[[argparse.Namespace], dict[str, Any]],
    kinds: list[Kind],
    peer: str,
) -> None:
    """One of our runs, or the comparison with the peer's script of that name."""
    if args.mode == "ours":
        print(json.dumps(one(args)))
    elif not args.peer_python:
        sys.exit("error: give --peer_python, the python of TRL's environment")
    else:
        compare(args, kinds, PEERS / peer)


def compare(args: argparse.Namespace, kinds: list[Kind], peer: Path) -> None:
    """The pairs, interleaved, and a table of their ratios."""
    same = [f"--{name}={getattr(args, name)}" for name in ("model", "data", "max_length")]
    same += [f"--steps={args.steps}", f"--warmup={args.warmup}"]
    mine = [sys.executable, sys.argv[0], "--mode=ours", f"--accumulate={args.accumulate}"]
    mine += [f"--tokens_per_batch={args.tokens_per_batch}", f"--remat={args.remat}", *same]
    theirs = [args.peer_python, str(peer), *same]
    print(
        "| trained | kind | tokens/s ours | TRL's | ratio | ratio in CPU time "
        "| peak GiB ours | TRL's | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for train in [args.train] if args.train else ["full", "lora"]:
        for kind in kinds:
            pairs = paired(
                args,
                [*mine, f"--train={train}", *kind.ours],
                [*theirs, f"--mode={train}", *kind.theirs],
                {"train": train, "kind": kind.name},
            )
            print(row(train, kind.name, pairs), flush=True)


def paired(
    args: argparse.Namespace, mine: list[str], theirs: list[str], about: dict[str, str]
) -> list[Pair]:
    """Both commands in turn, `--rounds` times; keeps their lines, with what they are about."""
    pairs = []
    for number in range(args.rounds):
        pairs.append((run_json(mine), run_json(theirs)))
        for line in pairs[-1]:
            keep(args.out, {**about, "round": number, **line})
    return pairs


def run_json(command: list[str]) -> dict[str, Any]:
    """Runs a process and reads the JSON line that it prints last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def keep(path: str | None, line: dict[str, Any]) -> None:
    """Adds a run's line to the file, or shows it where there is none."""
    if path is None:
        print(json.dumps(line), file=sys.stderr, flush=True)
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def spread(values: list[float]) -> str:
    """The median, with the least and the greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def rates(pairs: list[Pair], of: str) -> list[str]:
    """Tokens in one of `of` (seconds, say), ours and theirs of the middle pair; their ratio."""
    both = sorted((a["tokens"] / a[of], b["tokens"] / b[of]) for a, b in pairs)
    ours, theirs = both[len(both) // 2]
    return [f"{ours:.0f}", f"{theirs:.0f}", spread([a / b for a, b in both])]


def peaks(pairs: list[Pair]) -> list[str]:
    """GiB of memory, ours and theirs, of the run that took most."""
    return [f"{max(run['rss_mb'] for run in side) / 1024:.2f}" for side in zip(*pairs, strict=True)]


def row(train: str, kind: str, pairs: list[Pair]) -> str:
    """One line of the table: medians, and the ratios with their range."""

    def speed(run: dict) -> float:
        return run["tokens"] / run["seconds"]

    cpu = [(b["cpu_seconds"] / b["tokens"]) / (a["cpu_seconds"] / a["tokens"]) for a, b in pairs]
    cells = [
        train,
        kind,
        f"{statistics.median(speed(a) for a, _ in pairs):.0f}",
        f"{statistics.median(speed(b) for _, b in pairs):.0f}",
        spread([speed(a) / speed(b) for a, b in pairs]),
        spread(cpu),
        f"{statistics.median(a['rss_mb'] for a, _ in pairs) / 1024:.2f}",
        f"{statistics.median(b['rss_mb'] for _, b in pairs) / 1024:.2f}",
        spread([a["rss_mb"] / b["rss_mb"] for a, b in pairs]),
    ]
    return "| " + " | ".join(cells) + " |"
