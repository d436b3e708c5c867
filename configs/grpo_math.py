r"""Reinforcement learning on word problems with a number for an answer: DAPO, as of GSM8K.

    python -m ptjax.train --config=configs/grpo_math.py --workdir=runs/math \
        --config.model.source=Qwen/Qwen2.5-1.5B-Instruct \
        --config.data.sources[0].path=problems.jsonl

Rows have `answer`, a number or a solution that ends in `#### 5` or `\boxed{5}`, and `prompt`, which
ends in "Reason between <think> and </think>, then give the number between <answer> and </answer>."
Rewards: the answer is right; the form is kept; an answer that comes near the end of its room is
punished, so that `config.rollout.max_tokens` and the reward's own go together.
`--config=configs/grpo_math.py:grpo` keeps prompts that teach nothing;
`--config=configs/grpo_math.py:dapo,lora` trains adapters. docs/rewards.md, docs/rollouts.md.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

ROOM = 512


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.method, adapters = choose(arg, ["dapo", "grpo"], "configs/grpo_math.py")
    config.steps = 400
    config.rollout.n = 8
    config.rollout.max_tokens = ROOM
    config.rollout.minibatches = 2
    config.rewards = [
        {"name": "math", "forms": ["tag"], "workers": 2},
        {"name": "format", "weight": 0.2},
        {"name": "soft_overlong", "max_tokens": ROOM, "cache": ROOM // 4},
    ]
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.max_length = 512
    config.data.truncate = "drop"
    config.data.packing = False
    config.data.batch_size = 32
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
