"""Tokens of real pairs trained a second, and peak memory, beside TRL's DPOTrainer, pair by pair.

The peer lives in an environment of its own; its script's head says how it is made.

    python -m tests.golden.smollm2 smollm2     # there, once: the weights as a folder
    python benchmarks/make_data.py pairs dpo_en_demo.json pairs.jsonl
    python benchmarks/dpo.py --model=smollm2 --data=pairs.jsonl --peer_python=PEER/bin/python

Both train the same weights on the same file in float32 on the CPU: the sigmoid loss with beta 0.1,
AdamW, clipping, the same learning rate. TRL runs with its defaults (batches of 8 padded pairs,
gradient checkpointing); ptjax packs, each prompt once. First with a reference that is computed in
every step (`live`; with `--train=lora` both sides switch the adapters off for it), then with its
log-probs computed once before (`cached`): what that takes is in `prepare_seconds`, and in none of
the other figures. `--kind=padded` and `--kind=twice` are ours without packing, and packed with a
prompt for each side, beside the same peer. Tokens are those of both sides of a pair, the prompt
twice, without padding. `--mode=ours` runs one of ours alone and prints its JSON line.
"""

import argparse
from typing import Any

import side_by_side
from side_by_side import Kind

KINDS = {
    kind.name: kind
    for kind in (
        Kind("live", ["--kind=live"], []),
        Kind("cached", ["--kind=cached"], ["--precompute"]),
        Kind("padded", ["--kind=padded"], []),
        Kind("twice", ["--kind=twice"], []),
    )
}
PAIRS = 8
"""Of a step without packing, as the peer has them."""


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """One run of ptjax."""
    config = side_by_side.our_config(args)
    config.method = "dpo"
    config.hparams.beta = 0.1
    config.reference.mode = "cached" if args.kind == "cached" else "live"
    config.data.prompts_once = args.kind != "twice"
    if args.kind == "padded":
        config.data.packing = False
        config.data.batch_size = PAIRS
        config.data.buckets = (args.max_length,)
    config.optim.learning_rate = 1e-6
    return side_by_side.ours(args, config)


def main() -> None:
    """One of ours, or the comparison."""
    parser = side_by_side.training_parser(__doc__ or "")
    parser.set_defaults(tokens_per_batch=4096)  # the longest pair takes 2 * max_length
    parser.add_argument("--kind", choices=KINDS, help="one kind only; ours alone: live")
    args = parser.parse_args()
    kinds = [KINDS[args.kind]] if args.kind else [KINDS["live"], KINDS["cached"]]
    side_by_side.main(args, ours, kinds, "trl_dpo.py")


if __name__ == "__main__":
    main()
