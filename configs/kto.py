r"""Answers that are good or bad, one by one: KTO, BCO, APO-zero, of any supported model.

    python -m ptjax.train --config=configs/kto.py --workdir=runs/kto \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=labelled.jsonl

`--config=configs/kto.py:bco` and `--config=configs/kto.py:apo_zero` take another loss;
`--config=configs/kto.py:lora` and `--config=configs/kto.py:bco,lora` train adapters.
docs/methods/kto.md says what each is for and what its metrics should do, and which weights to set
where good and bad answers are not about as many.
Measured: `kto` has TRL's losses step by step (tests/test_kto_parity.py); no whole run.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {"kto": "kto", "bco": "bco", "apo_zero": "apo_zero_unpaired"}


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/kto.py")
    config = defaults()
    config.method = CHOICES[name]
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.tokens_per_batch = 32768
    config.accumulate = 2
    config.epochs = 1.0
    config.optim.learning_rate = 1e-6
    config.optim.warmup = 0.1
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-5
    return config
