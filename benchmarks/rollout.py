"""Rollouts alone beside TRL's native generation, or tunix's sampler, pair by pair.

Peers live in environments of their own; the heads of `peers/trl_grpo.py` and
`peers/tunix_rollout.py` say how they are made.

    python -m tests.golden.smollm2 smollm2     # there, once: the weights as a folder
    python -m benchmarks.small_model small --positions=1024     # or random ones, 5M of them
    python benchmarks/make_data.py prompts dolly_hhrlhf_train_small.jsonl prompts.jsonl
    python benchmarks/rollout.py --model=smollm2 --data=prompts.jsonl --peer_python=PEER/bin/python
    python benchmarks/rollout.py --model=smollm2 --data=prompts.jsonl --peer=tunix ...
    python benchmarks/rollout.py --model=smollm2 --data=prompts.jsonl --skewed --rows=8

Both sample `--group` answers of at most `--max_tokens` tokens to each of the file's first
`--prompts` prompts, the same tokens through the same chat template, with the same weights, at
temperature 1 in float32 on the CPU; answers end where the model ends them, and neither side makes
text of them. A run is `--steps` such rollouts in a fresh process. Each side's randomness is fixed,
so that rounds repeat the same work; the samplers differ, and so do the answers.

`--skewed` compares ptjax with itself: rows that are refilled, and a static batch, which is `--rows`
answers that are written until the longest of them has ended. Answers have lengths of their own
then, max_tokens · u³ for u uniform on [0, 1]: a quarter of max_tokens on average, and no stop.

A decode step is one token of every row that is being written.
"""

import argparse
import json
import random
import sys
import time
from typing import Any

import side_by_side
from side_by_side import Pair, paired, peak_mb, peaks, rates, spread


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Rollouts of ptjax, and what they took."""
    import ptjax
    from ptjax.data.config import SourceConfig
    from ptjax.data.template import Template
    from ptjax.generate import sample
    from ptjax.preferences.prompts import read_prompts

    bundle = ptjax.load(args.model)
    template = Template(bundle.tokenizer)
    asked = read_prompts(SourceConfig(args.data))[: args.prompts]
    prompts = [template.prompt_ids(one.messages).tolist() for one in asked]
    answers = len(prompts) * args.group
    limits, stop_ids = [args.max_tokens] * answers, bundle.stop_ids
    if args.skewed:
        draw = random.Random(0)
        limits, stop_ids = [max(1, round(x * draw.random() ** 3)) for x in limits], ()
    together = args.rows // args.group if args.static else len(prompts)
    taken, found = decode_steps(), []
    for step in range(args.steps):
        wall, cpu, steps, tokens = time.perf_counter(), time.process_time(), sum(taken), 0
        for first in range(0, len(prompts), together):
            batch = range(first * args.group, min(first + together, len(prompts)) * args.group)
            said = sample(
                bundle.model,
                bundle.params,
                prompts[first : first + together],
                max_tokens=[limits[i] for i in batch],
                n=args.group,
                temperature=1.0,
                stop_ids=stop_ids,
                rows=args.rows,
                seed=[step * answers + i for i in batch],
            )
            tokens += sum(len(one.tokens) for one in said)
        found.append(
            {
                "tokens": tokens,
                "decode_steps": sum(taken) - steps,
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
            }
        )
    kept = found[args.warmup :]
    return {
        "peer": "ptjax",
        "static": args.static,
        "prompt_tokens": sum(map(len, prompts)),
        "answers": answers,
        **{name: round(sum(one[name] for one in kept), 3) for name in kept[0]},
        "rss_mb": round(peak_mb(), 1),
    }


def decode_steps() -> list[int]:
    """A list that gets the number of steps of every stretch of decoding from now on."""
    from ptjax.generate import steps

    taken, decode = [], steps.decode

    def counted(*given, **named):
        made, rows = decode(*given, **named)
        taken.append(int(made.taken))
        return made, rows

    steps.decode = counted
    return taken


def compare(args: argparse.Namespace) -> None:
    """The pairs, interleaved, and a table of their ratios."""
    same = [f"--{name}={getattr(args, name)}" for name in ("model", "data", "steps", "warmup")]
    same += [f"--max_tokens={args.max_tokens}"]
    mine = [sys.executable, sys.argv[0], "--mode=ours", f"--prompts={args.prompts}", *same]
    mine += [f"--group={args.group}", f"--rows={args.rows}"]
    if args.skewed:
        names, mine = ("refilled", "static"), [*mine, "--skewed"]
        theirs = [*mine, "--static"]
    else:
        names, theirs = ("ours", f"{args.peer}'s"), [args.peer_python]
        theirs += [str(side_by_side.PEERS / f"{args.peer}_rollout.py"), *same]
        theirs += [f"--batch_size={args.prompts}", f"--n={args.group}"]
    pairs = paired(args, mine, theirs, {"compared": " and ".join(names)})
    for a, b in pairs:
        for name in ("answers", "prompt_tokens"):
            if a[name] != b[name]:
                sys.exit(f"error: {name}: {a[name]} and {b[name]}: not the same work")
    for line in table(names, pairs):
        print(line)


def table(names: tuple[str, str], pairs: list[Pair]) -> list[str]:
    """Tokens a second and decode steps of the middle pairs, ratios with their range, memory."""
    ours, theirs = names
    titles = [f"tokens/s: {ours}", theirs, "ratio", f"tokens a CPU second: {ours}", theirs, "ratio"]
    titles += [f"decode steps: {ours}", theirs, "ratio", f"peak GiB: {ours}", theirs]
    first, second = zip(*[(a["decode_steps"], b["decode_steps"]) for a, b in pairs], strict=True)
    middle = len(pairs) // 2
    cells = [*rates(pairs, "seconds"), *rates(pairs, "cpu_seconds")]
    cells += [str(sorted(first)[middle]), str(sorted(second)[middle])]
    cells += [spread([a / b for a, b in zip(first, second, strict=True)]), *peaks(pairs)]
    lines = titles, ["---"] * len(titles), cells
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    """One of ours, or the comparison."""
    parser = side_by_side.parser(__doc__ or "")
    parser.set_defaults(steps=3, warmup=1)
    parser.add_argument("--peer", choices=("trl", "tunix"), default="trl")
    parser.add_argument("--prompts", type=int, default=8, help="a rollout")
    parser.add_argument("--group", type=int, default=8, help="answers a prompt")
    parser.add_argument("--max_tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rows", type=int, default=64, help="ours: answers written together")
    parser.add_argument("--skewed", action="store_true", help="refilled rows and a static batch")
    parser.add_argument("--static", action="store_true", help="ours: no row is refilled")
    args = parser.parse_args()
    if not 0 <= args.warmup < args.steps:
        sys.exit("error: --warmup must be below --steps: nothing would be measured")
    if args.skewed and (args.rows % args.group or args.rows >= args.prompts * args.group):
        sys.exit("error: --skewed: --rows must be a multiple of --group, below prompts * group")
    if args.mode == "ours":
        print(json.dumps(ours(args)))
    elif not args.peer_python and not args.skewed:
        sys.exit("error: give --peer_python, the python of the peer's environment, or --skewed")
    else:
        compare(args)


if __name__ == "__main__":
    main()
