r"""DPO on the model's own answers, judged by rewards as it trains, of any supported model.

    python -m ptjax.train --config=configs/online_dpo.py --workdir=runs/online_dpo \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=prompts.jsonl \
        --config.rewards="[{'name': 'model', 'source': 'runs/reward'}]"

The best of `config.rollout.n` answers stands against the worst, or against another at random with
`--config=configs/online_dpo.py:random`. `--config=configs/online_dpo.py:lora` and
`--config=configs/online_dpo.py:random,lora` train adapters, whose reference takes no second copy of
the model. docs/methods/online_dpo.md says what it is for and what its metrics should do,
docs/rewards.md what rewards there are.
No whole run of a real model was measured.
"""

from ptjax.config import ConfigDict, choose, defaults, lora


def get_config(arg: str = "") -> ConfigDict:
    pairing, adapters = choose(arg, ["worst", "random"], "configs/online_dpo.py")
    config = defaults()
    config.method = "online_dpo"
    config.hparams.pairing = pairing
    config.steps = 300
    config.rollout.n = 4
    config.rollout.max_tokens = 256
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.truncate = "drop"
    config.data.packing = False
    config.data.batch_size = 64
    config.accumulate = 8
    config.optim.learning_rate = 1e-6
    config.optim.warmup = 0.1
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-5
    return config
