r"""Preference pairs without a reference: SimPO, AlphaPO, CPO, of any supported model.

    python -m ptjax.train --config=configs/simpo.py --workdir=runs/simpo \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=pairs.jsonl

`--config=configs/simpo.py:alphapo` and `--config=configs/simpo.py:cpo` take another loss;
`--config=configs/simpo.py:lora` and `--config=configs/simpo.py:cpo,lora` train adapters. Nothing
but the learning rate holds these to the model they begin with: raise it with care.
docs/methods/reference_free.md says what each is for and what its metrics should do.
No whole run was measured; losses and gradients are TRL's (tests/losses/test_preference.py).
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {
    "simpo": {"beta": 2.0, "gamma_beta_ratio": 0.5},
    "alphapo": {"beta": 2.0, "gamma_beta_ratio": 0.5, "alpha": 0.25},
    "cpo": {"beta": 0.1, "cpo_alpha": 1.0},
}


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/simpo.py")
    config = defaults()
    config.method = name
    config.hparams.update(CHOICES[name])
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.tokens_per_batch = 32768
    config.accumulate = 2
    config.epochs = 1.0
    config.optim.learning_rate = 5e-7
    config.optim.warmup = 0.1
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 5e-6
    return config
