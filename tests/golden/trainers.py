"""What the scripts that run TRL's trainers on SmolLM2-135M-Instruct have in common.

A run is ten steps in file order in float32 on the CPU: AdamW (0.9, 0.999, 1e-8), a constant
learning rate, no weight decay, clipping at 1.0. LoRA has r=8, alpha=16 on all linear layers; A is
`weights.tensor` under its name in PEFT's file, B is 0.

The model has the input embedding's `padding_idx` removed: torch would drop the gradient that
<|im_end|>, which is also the padding token, gets through the input embedding.
"""

import json
from typing import Any

import torch
from peft import LoraConfig

from tests.golden import smollm2, weights

STEPS = 10
OPTIMIZER = dict(
    optimizer="adamw",
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    max_grad_norm=1.0,
    schedule="constant",
)


def fresh():
    """The model as published, with the true gradient of its embedding, and its tokenizer."""
    model, tokenizer = smollm2.load()
    model.set_attn_implementation("sdpa")
    model.model.embed_tokens.padding_idx = None
    return model, tokenizer


def arguments(folder: str, rate: float, batch: int, micro: int | None = None) -> dict[str, Any]:
    """What TRL's configs are made with; `micro` examples a micro-batch, all at once if None."""
    micro = micro or batch
    return dict(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        max_steps=STEPS,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        train_sampling_strategy="sequential",
        learning_rate=rate,
        lr_scheduler_type="constant",
        weight_decay=OPTIMIZER["weight_decay"],
        max_grad_norm=OPTIMIZER["max_grad_norm"],
        max_length=128,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def lora(r: int, lora_alpha: int) -> LoraConfig:
    """Adapters on all linear layers."""
    return LoraConfig(
        r=r, lora_alpha=lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def run(trainer, **logged: str) -> dict[str, list[float]]:
    """Trains; losses and gradient norms of the steps, and `ours="TRL's name"` of its log."""
    for name, parameter in trainer.model.named_parameters():
        if "lora_A" in name:
            name = name.replace(".default", "")
            parameter.data = torch.tensor(weights.tensor(name, tuple(parameter.shape)))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    logged = {"losses": "loss", "grad_norms": "grad_norm", **logged}
    return {ours: [log[theirs] for log in logs] for ours, theirs in logged.items()}


def pairs() -> list[dict[str, Any]]:
    """The examples of preference_pairs.jsonl."""
    text = (weights.FOLDER / "preference_pairs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def cut(tokenizer, ids: list[int]) -> list[int]:
    """A completion's tokens without the newline that the template has after <|im_end|>."""
    assert ids[-2] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    return ids[:-1]


def write(name: str, **parts: Any) -> None:
    """Writes a golden file, a line for each of its parts."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in parts.items())
    (weights.FOLDER / name).write_text(f"{{\n{lines}\n}}\n")
