"""Whole GRPO steps and their rollouts beside TRL's GRPOTrainer or tunix's learner, pair by pair.

Peers live in environments of their own; their scripts' heads say how they are made.

    python -m tests.golden.smollm2 smollm2     # there, once: the weights as a folder
    python benchmarks/make_data.py prompts dolly_hhrlhf_train_small.jsonl prompts.jsonl
    python benchmarks/grpo.py --model=smollm2 --data=prompts.jsonl --peer_python=PEER/bin/python

Both sample `--n` answers of at most `--max_tokens` tokens to each of `--prompts` prompts with the
same weights, at temperature 1, in float32 on the CPU, give them the same reward and take one update
a rollout: AdamW, clipping, no reference, and the dapo loss (TRL's default; tunix takes its own).
tunix trains all parameters, and no adapters here. Tokens are those of the answers; answers end
where the model ends them.
"""

import argparse
import json
import sys
import time
from typing import Any

import side_by_side
from side_by_side import Pair, paired, peak_mb, peaks, rates


def share_of_e(prompts, completions) -> list[float]:
    """The reward: the share of letters `e` among an answer's letters."""
    return [text.count("e") / max(sum(map(str.isalpha, text)), 1) for text in completions]


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Steps of ptjax, as the loop takes them, and what they took."""
    import jax

    from ptjax.prepare import prepare
    from ptjax.updates import Updates

    config = side_by_side.our_config(args)
    config.method = "dapo"
    config.hparams.dynamic_sampling = False
    config.rewards = ["grpo.share_of_e"]
    config.rollout.n, config.rollout.max_tokens = args.n, args.max_tokens
    config.rollout.rows = args.rows
    config.data.packing, config.data.batch_size = False, args.prompts
    config.data.truncate = "drop"
    config.optim.learning_rate = 1e-6
    run = prepare(config)
    state, updates = run.state, Updates(run, run.pipeline.train())
    run.state = None  # the step donates it
    found: list[dict[str, float]] = []
    with jax.set_mesh(run.mesh):
        for step in range(args.steps):
            wall, cpu = time.perf_counter(), time.process_time()
            update = updates.make(state, step, updates.pull(step))
            state, logged = run.train_step(
                state.replace(carry=update.carry), update.columns, run.teacher(state)
            )
            jax.block_until_ready((state, logged))
            found.append(
                {
                    "tokens": float(update.host.columns["mask"].sum()),
                    "rollout_seconds": update.logged["rollout/seconds"],
                    "seconds": time.perf_counter() - wall,
                    "cpu_seconds": time.process_time() - cpu,
                    "difference": float(logged["sampler/difference"]),
                }
            )
    kept = found[args.warmup :]
    total = {name: sum(one[name] for one in kept) for name in kept[0]}
    return {
        "peer": "ptjax",
        "train": args.train,
        **{name: round(value, 3) for name, value in total.items() if name != "difference"},
        "sampler_difference": max(one["difference"] for one in kept),
        "rss_mb": round(peak_mb(), 1),
    }


def compare(args: argparse.Namespace) -> None:
    """The pairs, interleaved, and a table of their ratios."""
    same = [f"--{name}={getattr(args, name)}" for name in ("model", "data", "steps", "warmup")]
    same += [f"--n={args.n}", f"--max_tokens={args.max_tokens}"]
    mine = [sys.executable, sys.argv[0], "--mode=ours", f"--prompts={args.prompts}"]
    mine += [f"--accumulate={args.accumulate}", f"--rows={args.rows}", *same]
    theirs = [args.peer_python, str(side_by_side.PEERS / f"{args.peer}_grpo.py"), *same]
    theirs += [f"--batch_size={args.prompts}"]
    print(
        f"| trained | answers, tokens/s: ours | {args.peer}'s | ratio | step, tokens/s: ours "
        f"| {args.peer}'s | ratio | in CPU time | peak GiB ours | {args.peer}'s |\n"
        + "|---" * 10
        + "|"
    )
    kinds = ["full"] if args.peer == "tunix" else ["full", "lora"]
    for train in [args.train] if args.train else kinds:
        pairs = paired(args, [*mine, f"--train={train}"], [*theirs, f"--mode={train}"], {})
        print(row(train, pairs), flush=True)


def row(train: str, pairs: list[Pair]) -> str:
    """One line of the table: medians, and the ratios with their range."""
    cells = [train, *rates(pairs, "rollout_seconds"), *rates(pairs, "seconds")]
    return "| " + " | ".join([*cells, rates(pairs, "cpu_seconds")[2], *peaks(pairs)]) + " |"


def main() -> None:
    """One of ours, or the comparison."""
    parser = side_by_side.training_parser(__doc__ or "")
    parser.set_defaults(steps=3, warmup=1, accumulate=1)
    parser.add_argument("--peer", choices=("trl", "tunix"), default="trl")
    parser.add_argument("--prompts", type=int, default=4, help="a step")
    parser.add_argument("--n", type=int, default=8, help="answers a prompt")
    parser.add_argument("--max_tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--rows", type=int, default=64, help="ours: answers written together")
    args = parser.parse_args()
    if args.mode == "ours":
        print(json.dumps(ours(args)))
    elif not args.peer_python:
        sys.exit("error: give --peer_python, the python of the peer's environment")
    else:
        compare(args)


if __name__ == "__main__":
    main()
