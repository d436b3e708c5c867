"""SmolLM2-135M-Instruct says its name is Pip: DPO with LoRA on edits of its own answers.

python -m ptjax.train --config=configs/dpo_name.py --workdir=runs/dpo_name

Of 12 questions that are not trained on, none is answered with the name before and all are after;
about five minutes of processor time. colabs/dpo_name.ipynb goes through it.
"""

from pathlib import Path

from ptjax.config import ConfigDict, defaults, lora

DATA = Path(__file__).parent / "data"


def get_config() -> ConfigDict:
    config = defaults()
    config.model.source = "smollm2-135m-instruct"
    config.method = "dpo"
    config.hparams.loss = ("sigmoid", "sft")
    config.hparams.loss_weights = (1.0, 1.0)
    config.lora = lora(rank=16, alpha=32.0)
    config.data.sources = [{"path": str(DATA / "name_pairs.jsonl")}]
    config.data.validation = 0.15
    config.data.max_length = 96
    config.data.tokens_per_batch = 768
    config.reference.mode = "cached"
    config.steps = 24
    config.optim.learning_rate = 3e-4
    config.optim.warmup = 0.1
    config.checkpoint.every = 12
    config.eval.every = 6
    config.samples.prompts = (DATA / "name_prompts_heldout.txt").read_text().splitlines()
    config.samples.every = 12
    config.samples.max_tokens = 32
    return config
