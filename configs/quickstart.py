"""SmolLM2-135M-Instruct learns a new name and manner: LoRA on chats written for this project.

    python -m ptjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Measured on two CPU cores: 2 min 13 s for the whole command, 2.32 GiB at its peak. Held-out loss
4.366 before and 1.794 after 30 steps, accuracy 25.1% and 62.2%; asked who it is, it says that it is
Pip, a gardener on the ship.
"""

from pathlib import Path

from ptjax.config import ConfigDict, defaults, lora

DATA = Path(__file__).parent / "data"


def get_config() -> ConfigDict:
    config = defaults()
    config.model.source = "smollm2-135m-instruct"
    config.lora = lora(rank=16, alpha=32.0)
    config.data.sources = [{"path": str(DATA / "quickstart.jsonl")}]
    config.data.validation = [{"path": str(DATA / "quickstart_heldout.jsonl")}]
    config.data.max_length = 256
    config.data.tokens_per_batch = 512
    config.steps = 30
    config.optim.learning_rate = 1e-3
    config.optim.warmup = 0.1
    config.checkpoint.every = 15
    config.eval.every = 15
    config.samples.prompts = (DATA / "quickstart_prompts.txt").read_text().splitlines()
    config.samples.every = 15
    config.samples.max_tokens = 48
    return config
