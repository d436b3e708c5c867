r"""Supervised fine-tuning and preferences in one: ORPO on pairs, of any supported base model.

    python -m ptjax.train --config=configs/orpo.py --workdir=runs/orpo \
        --config.model.source=org/base-model --config.data.sources[0].path=pairs.jsonl

`--config=configs/orpo.py:lora` trains adapters instead.
docs/methods/reference_free.md says what it is for and what its metrics should do.
No whole run was measured; its loss and gradient are TRL's (tests/losses/test_preference.py).
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {"orpo": {"beta": 0.1}}


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/orpo.py")
    config = defaults()
    config.method = "orpo"
    config.hparams.update(CHOICES[name])
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.tokens_per_batch = 32768
    config.accumulate = 2
    config.epochs = 1.0
    config.optim.learning_rate = 8e-6
    config.optim.warmup = 0.1
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 5e-5
    return config
