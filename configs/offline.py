r"""Logged answers with rewards, nothing sampled: advantage-weighted regression, DRO; of any model.

    python -m ptjax.train --config=configs/offline.py --workdir=runs/awr \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=rated.jsonl

Rows have `prompt`, `completion` and `score`, whoever wrote the answer. `awr` imitates each as much
as it turned out well; `--config=configs/offline.py:dro` moves the policy to where rewards and the
distance from its reference agree. `--config=configs/offline.py:lora` and
`--config=configs/offline.py:dro,lora` train adapters. Scores of another scale than 0 to 1 want
another `hparams.temperature` for `dro`: docs/methods/grpo.md#from-logged-answers. Not measured.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {"awr": (1e-5, 1.0), "dro": (1e-6, 0.1)}
"""Rows: learning rate of all parameters, temperature."""


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/offline.py")
    config = defaults()
    config.method = name
    config.optim.learning_rate, config.hparams.temperature = CHOICES[name]
    config.optim.warmup = 0.1
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.tokens_per_batch = 32768
    config.accumulate = 2
    config.epochs = 1.0
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 10 * CHOICES[name][0]
    return config
