r"""A process reward model of any supported model: one score a step of a solution.

    python -m ptjax.train --config=configs/prm.py --workdir=runs/prm \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=steps.jsonl

`--config=configs/prm.py:lora` trains adapters and the scalar head.
Not this recipe but LoRA of rank 16 was measured, on 150 chains of BIG-Bench Mistake:
docs/methods/process_reward.md has the command and what came of it.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {"prm": "process_reward"}


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/prm.py")
    config = defaults()
    config.method = CHOICES[name]
    config.data.sources = [{"path": None}]
    config.data.validation = 0.05
    config.data.tokens_per_batch = 32768
    config.accumulate = 2
    config.epochs = 1.0
    config.optim.learning_rate = 1e-5
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-4
    return config
