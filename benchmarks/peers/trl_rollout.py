"""Rollouts of TRL's GRPOTrainer on the CPU in float32, native generation; prints one JSON line.

    python benchmarks/peers/trl_rollout.py --model=smollm2 --data=prompts.jsonl --steps=3

The environment is that of `trl_grpo.py`, and so is the trainer: what is timed is its own
generation, `_generate_single_turn`, which calls transformers' `generate` with the settings that
GRPOConfig has by default. The first `--batch_size` prompts of the file are answered `--n` times
each, in one batch, `--steps` times; nothing is trained. Printed, for the steps after `--warmup`:
`tokens` (of answers), `decode_steps` (tokens of each batch's longest answer), `seconds`,
`cpu_seconds`; of a step `prompt_tokens` and `answers`; `rss_mb`, the process's peak.
"""

import json
import os
import sys

import measure
import trl_grpo


def main() -> None:
    """One run."""
    args = trl_grpo.arguments(__doc__ or "", "runs/trl_rollout")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    printed, sys.stdout = sys.stdout, sys.stderr
    from trl import __version__

    trainer = trl_grpo.make(args)
    rows = measure.read(args.data, args.batch_size, trl_grpo.prompt)
    prompts = trainer._tokenize_prompts([row["prompt"] for row in rows])[0]
    asked = [prompt for prompt in prompts for _ in range(args.n)]
    trainer.model.train()  # as a step has it
    rollouts = trl_grpo.timed(trainer)
    for _ in range(args.steps):
        trainer._generate_single_turn(asked, None, {}, args.n)
    result = dict(
        peer="trl",
        version=__version__,
        prompt_tokens=sum(map(len, prompts)),
        answers=len(asked),
        **measure.of_rollouts(rollouts[args.warmup :]),
    )
    print(json.dumps(result), file=printed)


if __name__ == "__main__":
    main()
