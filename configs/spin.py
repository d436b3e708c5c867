r"""Self-play: the data's answers against the model's own (SPIN), of any supported model.

    python -m ptjax.train --config=configs/spin.py --workdir=runs/spin \
        --config.model.source=smollm2-135m-instruct --config.data.sources[0].path=chats.jsonl

`--config=configs/spin.py:lora` trains adapters, whose reference takes no second copy of the model.
Three iterations, whatever `config.steps` is: after a third of the steps the opponent becomes the
policy of then. docs/methods/spin.md says what it is for and what its metrics should do.
No whole run of a real model was measured.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

ITERATIONS = 3


def get_config(arg: str = "") -> ConfigDict:
    _, adapters = choose(arg, ["full"], "configs/spin.py")
    config = defaults()
    config.method = "spin"
    config.steps = 300
    config.hparams.sync_every = config.get_ref("steps") // ITERATIONS
    config.rollout.max_tokens = 256
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    config.data.packing = False
    config.data.batch_size = 64
    config.accumulate = 8
    config.optim.learning_rate = 5e-7
    config.optim.warmup = 0.1
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 5e-6
    return config
