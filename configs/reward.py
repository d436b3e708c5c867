r"""A reward model of any supported model: a scalar head in place of the vocabulary.

    python -m ptjax.train --config=configs/reward.py --workdir=runs/reward \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=pairs.jsonl

From pairs; `--config=configs/reward.py:ranked` reads rankings,
`--config=configs/reward.py:regression` ratings and `--config=configs/reward.py:outcome` answers
that are right or wrong. `--config=configs/reward.py:lora` and
`--config=configs/reward.py:ranked,lora` train adapters and the head.
Not this recipe but LoRA of rank 16 with texts cut at 256 tokens was measured, on 173 pairs of
PandaLM: 56.7% right of 67 of other prompts, where length alone gets 71.0% (docs/methods/reward.md).

    python -m benchmarks.judged reward --data=testset-v1.json --tokens_per_batch=2048 \
        --max_length=256 --limit=240 --out=runs/judged
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {
    "pairs": ("reward", {"center": 0.01}),
    "ranked": ("reward_ranked", {"center": 0.01}),
    "regression": ("reward_regression", {}),
    "outcome": ("outcome_reward", {}),
}


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/reward.py")
    config = defaults()
    config.method, hparams = CHOICES[name]
    config.hparams.update(hparams)
    config.data.sources = [{"path": None}]
    config.data.validation = 0.05
    config.data.truncate = "start"  # the end of an answer is where it is scored
    config.data.tokens_per_batch = 32768
    config.accumulate = 2
    config.epochs = 1.0
    config.optim.learning_rate = 1e-5
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-4
    return config
