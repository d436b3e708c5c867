r"""Distillation: a student learns a larger model's next-token distributions.

    python -m ptjax.train --config=configs/distill.py --workdir=runs/distill \
        --config.model.source=Qwen/Qwen2.5-0.5B-Instruct \
        --config.reference.source=Qwen/Qwen2.5-1.5B-Instruct \
        --config.data.sources[0].path=chat.jsonl

`gkd` learns on the data's answers; `--config=configs/distill.py:gkd_mixed` gives half of them to
the student. `--config=configs/distill.py:gkd_on_policy` and
`--config=configs/distill.py:on_policy` take prompts and learn on the student's own answers, from
the whole distribution or from the log-prob of the token that was written.
`--config=configs/distill.py:on_policy,lora` trains adapters. docs/methods/distill.md. The teacher
needs the student's tokenizer.
"""

from ptjax.config import ConfigDict, choose, defaults, lora

CHOICES = {
    "gkd": "gkd",
    "gkd_mixed": "gkd_mixed",
    "on_policy": "on_policy_distillation",
    "gkd_on_policy": "gkd_on_policy",
}


def get_config(arg: str = "") -> ConfigDict:
    name, adapters = choose(arg, CHOICES, "configs/distill.py")
    config = defaults()
    config.method = CHOICES[name]
    config.data.sources = [{"path": None}]
    config.data.validation = 0.02
    if name == "gkd":
        config.epochs = 1.0
        config.data.tokens_per_batch = 16384
        config.accumulate = 2
    else:
        config.steps = 300
        config.hparams.update({"beta": 1.0} if name == "gkd_on_policy" else {})
        config.rollout.n = 4 if name == "on_policy" else 1
        config.rollout.max_tokens = 256
        config.data.truncate = "drop"
        config.data.packing = False
        config.data.batch_size = 32
        config.accumulate = 4
    config.optim.learning_rate = 1e-5
    if adapters:
        config.lora = lora()
        config.optim.learning_rate = 1e-4
    return config
