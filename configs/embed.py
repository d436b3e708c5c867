r"""An embedder of any supported model: InfoNCE with in-batch and hard negatives, or SimCSE.

    python -m ptjax.train --config=configs/embed.py --workdir=runs/embed \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=queries.jsonl

`--config=configs/embed.py:simcse` learns from plain texts, with dropout as all that differs between
a text and its positive, and so without held-out texts; `--config=configs/embed.py:lora` and
`--config=configs/embed.py:simcse,lora` train adapters. A step's other texts are its negatives:
`data.batch_size` is part of the objective.
Not this recipe but LoRA of rank 16 with mean pooling and texts cut at 96 tokens was measured, on
360 questions and answers of Dolly: own answer nearest of 120 from 23.3% to 32.5%
(docs/methods/embed.md).

    python -m benchmarks.judged embed --data=dolly_hhrlhf_train_small.jsonl --max_length=96 \
        --limit=480 --tokens_per_batch=3072 --out=runs/judged
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {"infonce": 0.0, "simcse": 0.1}
"""Dropout of each."""


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/embed.py")
    config = defaults()
    config.method = "embed"
    config.hparams.update({"temperature": 0.05})
    config.model.dropout = CHOICES[name]
    config.data.sources = [{"path": None}]
    config.data.validation = 0.05 if name == "infonce" else None  # a text is near itself
    config.data.max_length = 256
    config.data.batch_size = 128
    config.epochs = 1.0
    config.optim.learning_rate = 1e-5
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-4
    return config
