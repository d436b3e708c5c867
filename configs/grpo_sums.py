r"""SmolLM2-135M-Instruct learns to calculate from a verifier alone: GRPO with LoRA, on a CPU.

    python -m ptjax.rewards.tasks --task=chain_sum --count=3000 --held_out=1000 --out=sums.jsonl \
        --suffix='' --settings='{"max_terms": 2, "min_digits": 1, "max_digits": 2}'
    python -m ptjax.train --config=configs/grpo_sums.py --workdir=runs/sums

Sums and differences of two numbers of one or two digits, of reasoning-gym; the reward is its own.
Held-out prompts answered greedily: mean reward 0.316 to 0.463 in 40 steps, 25 min 53 s on one CPU
core with the three evaluations of 1,000 prompts (docs/methods/grpo.md).
"""

from ptjax.config import ConfigDict, defaults, lora


def get_config() -> ConfigDict:
    config = defaults()
    config.method = "grpo"
    config.steps = 40
    config.model.source = "smollm2-135m-instruct"
    config.lora = lora(rank=16, alpha=32.0)
    config.rollout.n = 8
    config.rollout.max_tokens = 6
    config.rollout.stop_strings = ("\n",)
    config.rewards = [{"name": "reasoning_gym", "tag": None}]
    config.data.sources = [{"path": "sums.jsonl"}]
    config.data.validation = [{"path": "sums.held_out.jsonl"}]
    config.data.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config.data.packing = False
    config.data.batch_size = 16
    config.optim.learning_rate = 2e-4
    config.optim.schedule = "constant"
    config.optim.warmup = 0.05
    config.eval.every = 20
    config.checkpoint.every = 20
    return config
