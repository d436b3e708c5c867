r"""Reinforcement learning with tools: GRPO on problems for a calculator and a Python interpreter.

    pip install 'ptjax[rewards,code]'
    python -m ptjax.train --config=configs/grpo_tools.py --workdir=runs/tools \
        --config.model.source=Qwen/Qwen2.5-1.5B-Instruct \
        --config.data.sources[0].path=problems.jsonl

Rows have `answer`, as in configs/grpo_math.py, and `messages` or `prompt`; a system message, or a
column `tools`, tells the model what it may call: docs/environments.md has both. An answer has four
turns of the model; one that needs more, or more room, counts in its group and is not learnt from.
`--config=configs/grpo_tools.py:tag` has calls as `<python>print(6 * 7)</python>`, for models that
have not learnt calls in JSON; the closing tags end a turn.
`--config=configs/grpo_tools.py:lora` trains adapters. Programs run in the sandbox of
docs/code_sandbox.md, which proves itself at the start.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

TOOLS = ("calculator", "python")


def get_config(arg: str = "") -> ConfigDict:
    config = defaults()
    form, adapters = choose(arg, ["json", "tag"], "configs/grpo_tools.py")
    config.method = "grpo"
    config.steps = 300
    config.rollout.n = 8
    config.rollout.max_tokens = 768
    config.rollout.environment = {"name": "tools", "tools": list(TOOLS), "form": form}
    config.rollout.turns = 4
    if form == "tag":
        config.rollout.stop_strings = tuple(f"</{name}>" for name in TOOLS)
    config.hparams.mask_truncated = True
    config.rewards = [{"name": "math", "forms": ["boxed", "number"], "workers": 2}]
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
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
