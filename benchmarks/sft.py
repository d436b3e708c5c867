"""Tokens of real chats trained a second, and peak memory, beside TRL's SFTTrainer, pair by pair.

The peer lives in an environment of its own; its script's head says how it is made.

    python -m tests.golden.smollm2 smollm2     # there, once: the weights as a folder
    python benchmarks/sft.py --model=smollm2 --data=chats.jsonl --peer_python=PEER/bin/python

Both train the same weights on the same file in float32 on the CPU: AdamW, clipping, the same
learning rate, the last assistant turn trained. TRL runs with its defaults (batches of 8 padded
examples, gradient checkpointing), then with its packing; ptjax packs. A run is a fresh process; the
runs are interleaved, ours and theirs in turn, and what is compared is the ratio within each pair.
`--mode=ours` runs one of ours alone and prints its JSON line; `--profile=DIR` traces a step of it,
of which `benchmarks/where.py DIR` makes a table.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PEER = Path(__file__).parent / "peers" / "trl_sft.py"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder in the Hugging Face layout")
    parser.add_argument("--data", required=True, help="JSONL with messages")
    parser.add_argument("--peer_python", help="python of the peer's environment")
    parser.add_argument("--mode", choices=("compare", "ours"), default="compare")
    parser.add_argument("--train", choices=("full", "lora"), help="one kind only")
    parser.add_argument("--peer", choices=("default", "packing"), help="one kind only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps, warm-up included")
    parser.add_argument("--warmup", type=int, default=2, help="first steps that are not measured")
    parser.add_argument("--tokens_per_batch", type=int, default=2048, help="ours")
    parser.add_argument("--accumulate", type=int, default=2, help="ours")
    parser.add_argument("--remat", default="dots_and_attention", help="ours")
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--profile", help="ours: folder for a trace of the last step")
    return parser.parse_args()


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Trains with ptjax, step by step as the loop does, and says what it took."""
    import jax

    from ptjax import sharding
    from ptjax.config import defaults, lora
    from ptjax.prepare import prepare

    config = defaults()
    config.model.source = args.model
    config.model.remat = args.remat
    config.data.sources = [{"path": args.data}]
    config.data.train_on = "last"
    config.data.on_empty = "drop"
    config.data.max_length = args.max_length
    config.data.tokens_per_batch = args.tokens_per_batch
    config.accumulate = args.accumulate
    config.steps = args.steps
    config.optim.learning_rate = 2e-5
    if args.train == "lora":
        config.lora = lora(rank=16, alpha=32.0)
    run = prepare(config)
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
            state, logged = run.train_step(state, batch)
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
        "rss_mb": round(peak_mb(), 1),
        "rss_loaded_mb": round(loaded, 1),
        "host_ms": round(1000 * statistics.median(host[kept]), 2),
        "losses": [round(loss, 4) for loss in losses],
        "compilations": run.train_step._cache_size(),
    }


def peak_mb() -> float:
    """The process's peak resident memory, in 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_json(command: list[str]) -> dict[str, Any]:
    """Runs a process and reads the JSON line that it prints last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args: argparse.Namespace) -> None:
    """The pairs, interleaved, and a table of their ratios."""
    kinds = [
        (train, peer)
        for train in ([args.train] if args.train else ["full", "lora"])
        for peer in ([args.peer] if args.peer else ["default", "packing"])
    ]
    same = [f"--model={args.model}", f"--data={args.data}", f"--max_length={args.max_length}"]
    same += [f"--steps={args.steps}", f"--warmup={args.warmup}"]
    mine = [sys.executable, __file__, "--mode=ours", f"--accumulate={args.accumulate}"]
    mine += [f"--tokens_per_batch={args.tokens_per_batch}", f"--remat={args.remat}", *same]
    print(
        "| trained | TRL | tokens/s ours | TRL's | ratio | ratio in CPU time "
        "| peak GiB ours | TRL's | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for train, peer in kinds:
        pairs = []
        for _ in range(args.rounds):
            a = run_json([*mine, f"--train={train}"])
            extra = ["--packing"] if peer == "packing" else []
            b = run_json([args.peer_python, str(PEER), f"--mode={train}", *same, *extra])
            pairs.append((a, b))
            print(json.dumps({"ours": a, "theirs": b}), file=sys.stderr, flush=True)
        print(row(train, peer, pairs), flush=True)


def row(train: str, peer: str, pairs: list[tuple[dict, dict]]) -> str:
    """One line of the table: medians, and the ratios with their range."""

    def speed(run: dict) -> float:
        return run["tokens"] / run["seconds"]

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    cpu = [(b["cpu_seconds"] / b["tokens"]) / (a["cpu_seconds"] / a["tokens"]) for a, b in pairs]
    cells = [
        train,
        peer,
        f"{statistics.median(speed(a) for a, _ in pairs):.0f}",
        f"{statistics.median(speed(b) for _, b in pairs):.0f}",
        spread([speed(a) / speed(b) for a, b in pairs]),
        spread(cpu),
        f"{statistics.median(a['rss_mb'] for a, _ in pairs) / 1024:.2f}",
        f"{statistics.median(b['rss_mb'] for _, b in pairs) / 1024:.2f}",
        spread([a["rss_mb"] / b["rss_mb"] for a, b in pairs]),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """One of ours, or the comparison."""
    args = arguments()
    if args.mode == "ours":
        print(json.dumps(ours(args)))
    elif not args.peer_python:
        sys.exit("error: give --peer_python, the python of TRL's environment")
    else:
        compare(args)


if __name__ == "__main__":
    main()
