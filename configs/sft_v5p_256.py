r"""Full supervised fine-tuning on a slice of 256 v5p chips (topology 4x8x8, v5p-512 by its cores).

On every host of the slice, alike; the slice itself tells the hosts of each other:

    python -m ptjax.train --config=configs/sft_v5p_256.py --workdir=gs://bucket/sft \
        --distributed --config.data.sources[0].path=chat.jsonl

Llama-3.1-70B-Instruct; `--config=configs/sft_v5p_256.py:8b` trains Llama-3.1-8B-Instruct.

Memory a chip by the TPU compiler (`python -m ptjax.plan`; of 95 GiB; not run on a TPU): 70B
3.1 GiB of state, 17.2 GiB at its peak.
"""

from ptjax.config import ConfigDict, defaults
from ptjax.errors import UserError


def get_config(arg: str = "70b") -> ConfigDict:
    config = defaults()
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.sources = [{"path": None}]
    config.data.validation = 0.01
    config.data.max_length = 4096
    config.epochs = 2.0
    config.optim.learning_rate = 5e-6
    config.checkpoint.every = 200
    if arg == "70b":
        config.model.source = "meta-llama/Llama-3.1-70B-Instruct"
        config.mesh.tensor = 4
        config.data.tokens_per_batch = 128 * 4096
    elif arg == "8b":
        config.model.source = "meta-llama/Llama-3.1-8B-Instruct"
        config.data.tokens_per_batch = 256 * 4096
    else:
        raise UserError(f"configs/sft_v5p_256.py:{arg}: the argument is 70b or 8b")
    return config
