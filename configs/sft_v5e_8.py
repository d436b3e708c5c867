r"""Supervised fine-tuning on a slice of 8 v5e chips (v5litepod-8, 16 GB each).

    python -m ptjax.train --config=configs/sft_v5e_8.py --workdir=gs://bucket/sft \
        --config.data.sources[0].path=chat.jsonl

That is a slice of one host; where its chips are on several, add `--distributed` on each of them.
Llama-3.1-8B-Instruct with LoRA; `--config=configs/sft_v5e_8.py:full` trains all of
Qwen2.5-3B-Instruct instead.

Memory a chip by the TPU compiler (`python -m ptjax.plan`; of 15.75 GiB; not run on a TPU):
LoRA 2.5 GiB of state, 5.9 GiB at its peak; full 4.3 GiB and 10.3 GiB.
"""

from ptjax.config import ConfigDict, choose, defaults, lora


def get_config(arg: str = "lora") -> ConfigDict:
    _, adapters = choose(arg, ["full"], "configs/sft_v5e_8.py")
    config = defaults()
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.max_length = 2048
    config.data.tokens_per_batch = 65536
    config.accumulate = 2
    config.epochs = 1.0
    if adapters:
        config.model.source = "meta-llama/Llama-3.1-8B-Instruct"
        config.model.param_dtype = "bfloat16"
        config.lora = lora(rank=32, alpha=64.0)
        config.optim.learning_rate = 2e-4
    else:
        config.model.source = "Qwen/Qwen2.5-3B-Instruct"
        config.optim.learning_rate = 1e-5
    return config
