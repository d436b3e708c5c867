r"""Supervised fine-tuning of any supported model on any supported data.

    python -m ptjax.train --config=configs/sft.py --workdir=runs/sft \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=chat.jsonl

Full fine-tuning; `--config=configs/sft.py:lora` trains adapters instead. Run time and result are
those of your model and data: `--dry_run` says what a step takes, `configs/quickstart.py` has
measured figures of a small run (SmolLM2-135M, LoRA), and docs/performance.md tokens a second.
"""

from ptjax.config import ConfigDict, choose, defaults, lora


def get_config(arg: str = "full") -> ConfigDict:
    _, adapters = choose(arg, ["full"], "configs/sft.py")
    config = defaults()
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.epochs = 1.0
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 2e-4
    return config
