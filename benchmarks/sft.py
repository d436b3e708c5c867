"""Tokens of real chats trained a second, and peak memory, beside TRL's SFTTrainer, pair by pair.

The peer lives in an environment of its own; its script's head says how it is made.

    python -m tests.golden.smollm2 smollm2     # there, once: the weights as a folder
    python benchmarks/make_data.py chats dolly_hhrlhf_train_small.jsonl chats.jsonl
    python benchmarks/sft.py --model=smollm2 --data=chats.jsonl --peer_python=PEER/bin/python

Both train the same weights on the same file in float32 on the CPU: AdamW, clipping, the same
learning rate, the last assistant turn trained. ptjax packs, with its default of what is computed
again. `--peer` names what it stands beside:

    default       TRL's defaults: a micro-batch of 8 padded examples, gradient checkpointing
    large         the same, and ours in one micro-batch of 8,192 tokens, each layer computed again
    packing       TRL's packing, in as many micro-batches of as many tokens as ours has
    packing_of_8  TRL's packing with its own micro-batch of 8 rows

`--mode=ours` runs one of ours alone and prints its JSON line; `--profile=DIR` traces a step of it,
of which `benchmarks/where.py DIR` makes a table.
"""

import argparse
from typing import Any

import side_by_side
from side_by_side import Kind

KINDS = [
    Kind("default", [], []),
    Kind("large", ["--tokens_per_batch=8192", "--accumulate=1", "--remat=full"], []),
    Kind("packing", [], ["--packing", "--batch_size=1", "--accumulate=2"]),
    Kind("packing_of_8", [], ["--packing"]),
]


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """One run of ptjax."""
    config = side_by_side.our_config(args)
    config.data.train_on = "last"
    config.optim.learning_rate = 2e-5
    return side_by_side.ours(args, config)


def main() -> None:
    """One of ours, or the comparison."""
    parser = side_by_side.training_parser(__doc__ or "")
    parser.add_argument("--peer", choices=[kind.name for kind in KINDS], help="one kind only")
    args = parser.parse_args()
    kinds = [kind for kind in KINDS if args.peer in (None, kind.name)]
    side_by_side.main(args, ours, kinds, "trl_sft.py")


if __name__ == "__main__":
    main()
