"""Tokens of real pairs trained a second, and peak memory, beside TRL's DPOTrainer, pair by pair.

The peer lives in an environment of its own; its script's head says how it is made.

    python -m tests.golden.smollm2 smollm2     # there, once: the weights as a folder
    python benchmarks/make_data.py pairs dpo_en_demo.json pairs.jsonl
    python benchmarks/dpo.py --model=smollm2 --data=pairs.jsonl --peer_python=PEER/bin/python

Both train the same weights on the same file in float32 on the CPU: the sigmoid loss with beta 0.1,
AdamW, clipping, the same learning rate. TRL runs with its defaults (batches of 8 padded pairs,
gradient checkpointing); ptjax packs. First with a reference that is computed in every step
(`live`), then with its log-probs computed once before (`cached`): what that takes is in
`prepare_seconds`, and in none of the other figures. Tokens are those of both sides of a pair, the
prompt twice, without padding. `--mode=ours` runs one of ours alone and prints its JSON line.
"""

import argparse
from typing import Any

import side_by_side
from side_by_side import Kind

KINDS = [
    Kind("live", ["--reference=live"], []),
    Kind("cached", ["--reference=cached"], ["--precompute"]),
]


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """One run of ptjax."""
    config = side_by_side.our_config(args)
    config.method = "dpo"
    config.hparams.beta = 0.1
    config.reference.mode = args.reference or "live"
    config.optim.learning_rate = 1e-6
    return side_by_side.ours(args, config)


def main() -> None:
    """One of ours, or the comparison."""
    parser = side_by_side.parser(__doc__ or "")
    parser.set_defaults(tokens_per_batch=4096)  # the longest pair takes 2 * max_length
    names = [kind.name for kind in KINDS]
    parser.add_argument("--reference", choices=names, help="one kind only; ours alone: live")
    args = parser.parse_args()
    kinds = [kind for kind in KINDS if args.reference in (None, kind.name)]
    side_by_side.main(args, ours, kinds, "trl_dpo.py")


if __name__ == "__main__":
    main()
