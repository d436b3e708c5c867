r"""Reinforcement learning on programs that tests judge, run in a sandbox: GRPO, as of MBPP.

    pip install 'ptjax[code]'
    python -m ptjax.train --config=configs/grpo_code.py --workdir=runs/code \
        --config.model.source=Qwen/Qwen2.5-Coder-1.5B-Instruct \
        --config.data.sources[0].path=tasks.jsonl

Rows have `prompt` and their tests, in one of the forms of docs/code_sandbox.md: `test_list` with
assertions, `inputs` and `outputs`, ... An answer is right where it passes all of them.
`--config=configs/grpo_code.py:dapo` leaves out tasks that all answers solve, or none;
`--config=configs/grpo_code.py:lora` trains adapters. Answers that ran out of room count in their
group and are not learnt from.
"""

from ptjax.config import ConfigDict, choose, defaults, lora


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    config.method, adapters = choose(arg, ["grpo", "dapo"], "configs/grpo_code.py")
    config.steps = 300
    config.rollout.n = 8
    config.rollout.max_tokens = 512
    config.hparams.mask_truncated = True
    config.rewards = [{"name": "code", "score": "all", "seconds": 2.0}]
    config.data.sources = [{"path": None}]
    config.data.validation = 0.05
    config.data.max_length = 1024
    config.data.truncate = "drop"
    config.data.packing = False
    config.data.batch_size = 16
    config.accumulate = 2
    config.optim.learning_rate = 1e-6
    config.optim.schedule = "constant"
    config.eval.every = 25
    config.checkpoint.every = 25
    config.checkpoint.best = ("eval/rollout/reward", "max")
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-5
    return config
