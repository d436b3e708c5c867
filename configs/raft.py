r"""RAFT: the policy imitates the best by reward of its own answers; of any supported model.

    python -m ptjax.train --config=configs/raft.py --workdir=runs/raft \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=prompts.jsonl \
        --config.rewards="[{'name': 'math'}]"

Prompts whose answers are all alike in reward are left out. `--config=configs/raft.py:all` imitates
every answer whose reward is at least 1: rejection-sampling fine-tuning, where rewards say what is
right. `--config=configs/raft.py:lora` and `--config=configs/raft.py:all,lora` train adapters.
docs/methods/raft.md. 64 prompts of 8 answers make a rollout.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {"best": {"drop_no_signal": True}, "all": {"keep": 8, "least": 1.0}}


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/raft.py")
    config = defaults()
    config.method = "raft"
    config.hparams.update(CHOICES[name])
    config.steps = 200
    config.rollout.n = 8
    config.rollout.max_tokens = 256
    config.rollout.minibatches = 2
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.truncate = "drop"
    config.data.packing = False
    config.data.batch_size = 64
    config.accumulate = 2
    config.optim.learning_rate = 2e-6
    config.eval.every = 20
    config.checkpoint.every = 50
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 5e-5
    return config
