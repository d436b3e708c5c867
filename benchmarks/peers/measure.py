"""What the scripts that train with TRL have in common: their command line and what they measure.

Printed, for the steps after `--warmup`: `tokens` (not padding), `slots` (padding too), `trained`
(tokens with a loss), `seconds`, `cpu_seconds`, and the same a step in `step_*`; `losses` and
`grad_norms` of all steps; `prepare_seconds`, what making the trainer took; `rss_mb`, the process's
peak resident memory, and `rss_loaded_mb`, that peak before the first step.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parser(doc: str, output: str) -> argparse.ArgumentParser:
    """The command line that all of them have."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--model", required=True, help="a local folder in the Hugging Face layout")
    made.add_argument("--data", required=True, help="a JSONL file")
    made.add_argument("--mode", choices=("full", "lora"), default="full")
    made.add_argument("--rank", type=int, default=16, help="LoRA's rank; alpha is twice that")
    made.add_argument("--steps", type=int, default=8, help="optimizer steps, warm-up included")
    made.add_argument("--warmup", type=int, default=2, help="first steps that are not measured")
    made.add_argument("--batch_size", type=int, default=8, help="examples a micro-batch")
    made.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    made.add_argument("--max_length", type=int, default=1024)
    made.add_argument(
        "--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=True
    )
    made.add_argument("--sequential", action="store_true", help="take examples in file order")
    made.add_argument("--limit", type=int, default=None, help="use the file's first n examples")
    made.add_argument("--threads", type=int, default=None, help="torch's threads")
    made.add_argument("--output", default=output, help="TRL's output folder; stays empty")
    return made


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What TRL's configs are made with; everything else stays at TRL's default."""
    return dict(
        output_dir=args.output,
        use_cpu=True,
        bf16=False,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulate,
        max_length=args.max_length,
        learning_rate=args.learning_rate,
        gradient_checkpointing=args.gradient_checkpointing,
        train_sampling_strategy="sequential" if args.sequential else "random",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def read(path: str, limit: int | None, example: Callable[[dict], dict]) -> list[dict]:
    """All rows of a JSONL file as the trainer's examples, or the first `limit`."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(rows) >= limit:
                break
            if not line.strip():
                continue
            try:
                rows.append(example(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                sys.exit(f"error: {path}:{number}: not an example: {error}")
    return rows


def peak_mb() -> float:
    """The process's peak resident memory, in 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds() -> float:
    """CPU time of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def of_rollouts(kept: list[tuple[float, float, list[int]]]) -> dict[str, Any]:
    """What is printed of rollouts: (seconds, CPU seconds, tokens of each answer) of each."""
    return dict(
        tokens=sum(sum(lengths) for *_, lengths in kept),
        decode_steps=sum(max(lengths) for *_, lengths in kept),
        seconds=round(sum(one[0] for one in kept), 3),
        cpu_seconds=round(sum(one[1] for one in kept), 3),
        rss_mb=round(peak_mb(), 1),
    )


def of_steps(
    rollouts: list[tuple[float, float, list[int]]],
    clock: list[tuple[float, float]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What is printed of steps with a rollout each; `clock` is their (seconds, CPU) boundaries."""
    kept = rollouts[args.warmup : args.steps]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(clock, clock[1:], strict=False)]
    steps = steps[args.warmup :]
    return dict(
        tokens=sum(sum(lengths) for *_, lengths in kept),
        rollout_seconds=round(sum(one[0] for one in kept), 3),
        rollout_cpu_seconds=round(sum(one[1] for one in kept), 3),
        seconds=round(sum(one[0] for one in steps), 3),
        cpu_seconds=round(sum(one[1] for one in steps), 3),
        rss_mb=round(peak_mb(), 1),
    )


def run(
    args: argparse.Namespace,
    make: Callable[[argparse.Namespace], Any],
    trained: Callable[[dict], Any],
    *named: str,
) -> None:
    """Trains, and prints one line of JSON; everything else goes to standard error.

    Args:
      args: the command line.
      make: a TRL trainer that has not trained yet.
      trained: from a collated batch, how many of its tokens have a loss.
      named: arguments to print beside those that all scripts have.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    printed, sys.stdout = sys.stdout, sys.stderr
    import torch
    from transformers import TrainerCallback
    from trl import __version__

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

    begun = time.perf_counter()
    trainer = make(args)
    prepared = time.perf_counter() - begun
    trainer.add_callback(clock := Clock())

    # The loader fetches ahead of the steps, in order: step i's micro-batches are the i-th group.
    counts, collate = [], trainer.data_collator

    def counted(rows):
        batch = collate(rows)
        slots = batch["input_ids"].numel()
        tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else slots
        counts.append((tokens, slots, int(trained(batch))))
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
    named += ("mode", "gradient_checkpointing", "batch_size", "accumulate", "max_length")
    result = dict(
        peer="trl",
        version=__version__,
        torch=torch.__version__,
        dtype=str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
        attention=trainer.model.config._attn_implementation,
        threads=torch.get_num_threads(),
        data=Path(args.data).name,
        **{key: getattr(args, key) for key in (*named, "steps", "warmup")},
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        parameters=sum(p.numel() for p in parameters),
        tokens=sum(sums[0][measured]),
        slots=sum(sums[1][measured]),
        trained=sum(sums[2][measured]),
        seconds=round(sum(wall[measured]), 3),
        cpu_seconds=round(sum(cpu[measured]), 3),
        prepare_seconds=round(prepared, 3),
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


def parts(args: argparse.Namespace) -> dict[str, Any]:
    """The trainer's model, tokenizer and adapters."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lora = LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return dict(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=lora if args.mode == "lora" else None,
    )
