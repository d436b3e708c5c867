r"""GRPO with LoRA on the one free TPU chip of a Colab notebook (v5e-1, 16 GB); not run on a TPU.

    python -m ptjax.rewards.tasks --task=chain_sum --count=2000 --held_out=100 --out=sums.jsonl
    python -m ptjax.train --config=configs/grpo_colab_tpu.py --workdir=runs/grpo_colab

Qwen3-0.6B learns to add without thinking aloud: the template writes its empty thought. Another
task of reasoning-gym is another `--task`; `--dry_run` says what a step takes.
"""

from ptjax.config import ConfigDict, defaults, lora

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


def get_config() -> ConfigDict:
    config = defaults()
    config.method = "grpo"
    config.steps = 200
    config.model.source = "Qwen/Qwen3-0.6B"
    config.model.param_dtype = "bfloat16"
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.lora = lora(rank=16, alpha=32.0)
    config.rollout.n = 8
    config.rollout.max_tokens = 128
    config.rewards = [{"name": "reasoning_gym"}]
    config.data.sources = [{"path": "sums.jsonl"}]
    config.data.validation = [{"path": "sums.held_out.jsonl"}]
    config.data.chat_template = TEMPLATE
    config.data.max_length = 256
    config.data.truncate = "drop"
    config.data.packing = False
    config.data.batch_size = 8
    config.accumulate = 4
    config.optim.learning_rate = 1e-5
    config.optim.schedule = "constant"
    config.eval.every = 25
    config.checkpoint.every = 25
    return config
