r"""Preference pairs against a reference: DPO and its relatives, of any supported model.

    python -m ptjax.train --config=configs/dpo.py --workdir=runs/dpo \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=pairs.jsonl

`--config=configs/dpo.py:ipo` takes another row of `CHOICES`; `--config=configs/dpo.py:lora` and
`--config=configs/dpo.py:ipo,lora` train adapters, whose reference takes no second copy of the
model. docs/methods/dpo.md says what each is for. About 64 pairs of 256 tokens a side make a step.
Measured: ten steps of `sigmoid` have TRL's losses to 1e-5; configs/dpo_name.py teaches a name.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {
    "sigmoid": {},  # DPO
    "cdpo": {"label_smoothing": 0.1},
    "robust": {"loss": "robust", "label_smoothing": 0.1},
    "hinge": {"loss": "hinge"},
    "ipo": {"loss": "ipo"},
    "exo": {"loss": "exo_pair"},
    "nca": {"loss": "nca_pair", "beta": 0.01},
    "bco_pair": {"loss": "bco_pair"},
    "sppo": {"loss": "sppo_hard", "beta": 0.001},
    "aot": {"loss": "aot"},
    "aot_unpaired": {"loss": "aot_unpaired"},
    "apo_zero": {"loss": "apo_zero"},
    "apo_down": {"loss": "apo_down"},
    "discopop": {"loss": "discopop", "beta": 0.05},
    "norm": {"loss": "sigmoid_norm", "beta": 5.0},
    "mpo": {"loss": ("sigmoid", "bco_pair", "sft"), "loss_weights": (0.8, 0.2, 1.0)},
    "forward_kl": {"f_divergence": "forward_kl"},
    "js": {"f_divergence": "js"},
    "alpha": {"f_divergence": "alpha"},
    "tr": {"sync_every": 512, "sync_alpha": 0.6},  # for runs of more steps than that
    "wpo": {"wpo": True, "beta": 0.01},
    "ld": {"ld_alpha": 0.5},
}


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/dpo.py")
    config = defaults()
    config.method = "dpo"
    config.hparams.update(CHOICES[name])
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.tokens_per_batch = 32768
    config.accumulate = 1 if name.startswith("aot") else 2  # aot sorts the whole batch
    config.epochs = 1.0
    config.optim.learning_rate = 1e-6
    config.optim.warmup = 0.1
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-5
    return config
