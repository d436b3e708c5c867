r"""Supervised fine-tuning on the one free TPU chip of a Colab notebook (v5e-1, 16 GB).

    python -m ptjax.train --config=configs/sft_colab_tpu.py --workdir=runs/colab \
        --config.data.sources[0].path=chat.jsonl

Qwen2.5-1.5B-Instruct with LoRA; `--config=configs/sft_colab_tpu.py:full` trains all of
Qwen2.5-0.5B-Instruct instead.

Memory a chip by the TPU compiler (`python -m ptjax.plan`; of 15.75 GiB; not run on a TPU):
LoRA 3.1 GiB of state, 4.9 GiB at its peak; full 5.5 GiB and 8.9 GiB.
"""

from ptjax.config import ConfigDict, choose, defaults, lora


def get_config(arg: str = "lora") -> ConfigDict:
    _, adapters = choose(arg, ["full"], "configs/sft_colab_tpu.py")
    config = defaults()
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.tokens_per_batch = 8192
    config.epochs = 1.0
    config.checkpoint.every = 100
    if adapters:
        config.model.source = "Qwen/Qwen2.5-1.5B-Instruct"
        config.model.param_dtype = "bfloat16"
        config.lora = lora(rank=16, alpha=32.0)
        config.optim.learning_rate = 2e-4
    else:
        config.model.source = "Qwen/Qwen2.5-0.5B-Instruct"
        config.optim.learning_rate = 1e-5
    return config
