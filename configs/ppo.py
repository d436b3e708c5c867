r"""Proximal policy optimisation: a value function beside the policy, of any supported model.

    python -m ptjax.train --config=configs/ppo.py --workdir=runs/ppo \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=prompts.jsonl \
        --config.rewards="[{'name': 'model', 'source': 'runs/reward'}]"

The value head stands on the policy's body; `--config=configs/ppo.py:separate` gives it a body of
its own, which `--config.model.critic=runs/reward` begins as a reward model.
`--config=configs/ppo.py:lora` and `--config=configs/ppo.py:separate,lora` train adapters.
docs/methods/ppo.md. Four updates follow a rollout of 32 prompts of two answers.
"""

from ptjax.algorithms.ppo import CRITICS
from ptjax.config import ConfigDict, choose, defaults, lora


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.method = "ppo"
    config.hparams.critic, adapters = choose(arg, CRITICS, "configs/ppo.py")
    config.steps = 1000
    config.rollout.n = 2
    config.rollout.max_tokens = 256
    config.rollout.epochs = 2
    config.rollout.minibatches = 2
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.truncate = "drop"
    config.data.packing = False
    config.data.batch_size = 32
    config.accumulate = 2
    config.optim.learning_rate = 1e-6
    config.optim.schedule = "constant"
    config.eval.every = 100
    config.checkpoint.every = 100
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-5
    return config
