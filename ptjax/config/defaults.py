"""Every field of a training config and its default; recipes change what they need."""

from typing import Any

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict


def defaults() -> Any:
    """A config with every field that `ptjax.train` reads; `model.source` and the data have none."""
    return ConfigDict(
        {
            "seed": 0,
            "method": "sft",
            "hparams": {},
            "steps": config_dict.placeholder(int),
            "epochs": config_dict.placeholder(float),
            "accumulate": 1,
            "trainable": config_dict.placeholder(str),
            "ema": 0.0,
            "neftune": 0.0,
            "model": {
                "source": config_dict.required_placeholder(str),
                "param_dtype": "float32",
                "base": "none",
                "offload": False,
                "dtype": "float32",
                "remat": "dots_and_attention",
                "dropout": 0.0,
                "attention": "auto",
                "head_chunk": 512,
                "pooling": "last",
                "router_aux_loss_coef": config_dict.placeholder(float),
                "critic": config_dict.placeholder(str),
                "special_tokens": (),
            },
            "lora": config_dict.placeholder(ConfigDict),
            "reference": {"source": config_dict.placeholder(str), "mode": "live"},
            "rollout": {
                "n": config_dict.placeholder(int),
                "max_tokens": 256,
                "temperature": 1.0,
                "eval_temperature": 0.0,
                "top_k": config_dict.placeholder(int),
                "top_p": config_dict.placeholder(float),
                "stop_strings": (),
                "environment": None,
                "turns": 4,
                "rows": 64,
                "epochs": 1,
                "minibatches": 1,
                "max_missing": 0.5,
            },
            "rewards": [],
            "data": {
                "sources": [],
                "validation": None,
                "train_on": "assistant",
                "chat_template": config_dict.placeholder(str),
                "max_length": 1024,
                "truncate": "end",
                "on_empty": "error",
                "on_bad_line": "error",
                "packing": True,
                "prompts_once": True,
                "tokens_per_batch": 4096,
                "row_length": config_dict.placeholder(int),
                "batch_size": config_dict.placeholder(int),
                "buckets": None,
                "shuffle": True,
                "workers": 0,
                "cache": config_dict.placeholder(str),
            },
            "optim": {
                "name": "adamw",
                "learning_rate": 1e-5,
                "schedule": "cosine",
                "warmup": 0.03,
                "final": 0.0,
                "decay": 0.2,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "b1": 0.9,
                "b2": config_dict.placeholder(float),
                "eps": 1e-8,
                "momentum": 0.9,
                "state_bits": 32,
                "rounding": "nearest",
                "offload": False,
            },
            "guard": {"max_skipped": 5, "spike": 0.0, "spike_window": 64},
            "mesh": {"data": 1, "fsdp": -1, "expert": 1, "sequence": 1, "tensor": 1},
            "checkpoint": {"every": 500, "keep": 2, "best": None, "async_save": True},
            "eval": {"every": 200},
            "samples": {"prompts": [], "every": 0, "max_tokens": 64, "temperature": 0.0},
            "log": {"every": 1, "completions": 10, "tensorboard": True, "wandb": None},
        }
    )


def lora(**changes: object) -> Any:
    """The group `config.lora`: the fields of `Lora`, and an adapter to go on from."""
    group = ConfigDict(
        {
            "rank": 16,
            "alpha": 32.0,
            "dropout": 0.0,
            "targets": r"layers\.(q|k|v|o|gate|up|down)",
            "rslora": False,
            "dora": False,
            "adapter": config_dict.placeholder(str),
        }
    )
    group.update(changes)
    return group
