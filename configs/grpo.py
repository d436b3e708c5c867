r"""Reinforcement learning from rewards: GRPO and its family, of any supported model.

    python -m ptjax.train --config=configs/grpo.py --workdir=runs/grpo \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=prompts.jsonl \
        --config.rewards="[{'name': 'format'}, {'name': 'math', 'weight': 2.0}]"

`--config=configs/grpo.py:dapo` takes another row of `CHOICES`, all presets by paper name;
`--config=configs/grpo.py:lora` and `--config=configs/grpo.py:dapo,lora` train adapters, whose
reference takes no second copy of the model. docs/methods/grpo.md says what each is,
docs/rewards.md what rewards there are. 16 prompts of 8 answers make a rollout.
"""

from ptjax.algorithms.online import PRESETS
from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = tuple(PRESETS)


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.method, adapters = choose(arg, CHOICES, "configs/grpo.py")
    config.steps = 500
    config.rollout.n = 8
    config.rollout.max_tokens = 256
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.truncate = "drop"
    config.data.packing = False
    config.data.batch_size = 16
    config.accumulate = 2
    config.optim.learning_rate = 1e-6
    config.optim.schedule = "constant"
    config.eval.every = 50
    config.checkpoint.every = 50
    config.checkpoint.best = ("eval/rollout/reward", "max")
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-5
    return config
