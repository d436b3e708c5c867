"""A whole config's keys and ranges, looked at before anything is loaded."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict, FieldReference

from ptjax.config.defaults import defaults
from ptjax.config.fields import missing
from ptjax.errors import UserError, check_keys, did_you_mean

CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.base": ("none", "int8", "nf4"),
    "optim.rounding": ("nearest", "stochastic", "kahan"),
}
"""Fields that are one of few words, alike where they are read: no word here imports jax."""
_UNSET = ("optim.clip_norm",)
"""Fields with a default that may be None: nothing of the kind is done then."""
_TEXTS = ("model.special_tokens", "samples.prompts", "rollout.stop_strings")
_OPEN = ("data", "hparams", "lora", "rollout.environment", "log.wandb")
"""Groups whose keys their own readers know."""


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    text: str


_COUNT = _Rule(lambda v: 1 <= v < 2**31, "at least 1, and below 2^31")
_NOT_NEGATIVE = _Rule(lambda v: 0 <= v < math.inf, "not negative")
_POSITIVE = _Rule(lambda v: 0 < v < math.inf, "positive")
_PART = _Rule(lambda v: 0 <= v < 1, "in [0, 1)")
_FRACTION = _Rule(lambda v: 0 <= v <= 1, "in [0, 1]")

_RULES: dict[str, _Rule] = {
    "steps": _COUNT,
    "epochs": _POSITIVE,
    "accumulate": _COUNT,
    "ema": _PART,
    "neftune": _NOT_NEGATIVE,
    "model.dropout": _PART,
    "model.head_chunk": _COUNT,
    "model.router_aux_loss_coef": _NOT_NEGATIVE,
    "lora.rank": _COUNT,
    "lora.alpha": _POSITIVE,
    "lora.dropout": _PART,
    "data.workers": _NOT_NEGATIVE,
    "optim.learning_rate": _POSITIVE,
    "optim.warmup": _NOT_NEGATIVE,
    "optim.final": _FRACTION,
    "optim.decay": _FRACTION,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.clip_norm": _POSITIVE,
    "optim.b1": _PART,
    "optim.b2": _PART,
    "optim.eps": _POSITIVE,
    "optim.momentum": _PART,
    "guard.max_skipped": _COUNT,
    "guard.spike": _NOT_NEGATIVE,
    "guard.spike_window": _COUNT,
    "checkpoint.every": _NOT_NEGATIVE,
    "eval.every": _NOT_NEGATIVE,
    "samples.every": _NOT_NEGATIVE,
    "samples.max_tokens": _COUNT,
    "samples.temperature": _NOT_NEGATIVE,
    "log.every": _NOT_NEGATIVE,
    "log.completions": _NOT_NEGATIVE,
}


def check(config: Any) -> None:
    """Refuses a key that nothing reads, one that is missing, and a value out of its range.

    Raises:
      UserError: names the first of them.
    """
    absent = missing(config)
    if absent:
        raise UserError(f"required value(s) missing: {', '.join(absent)}")
    _check_keys(config, defaults(), "config")
    for path, rule in _RULES.items():
        value = _get(config, path)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not rule.holds(value):
            raise UserError(f"config.{path} = {value!r}: it must be {rule.text}")
    for path, choices in CHOICES.items():
        value = _get(config, path)
        if value not in choices:
            raise UserError(f"config.{path} = {value!r}{did_you_mean(str(value), choices)}")
    if config.model.base != "none" and config.lora is None:
        raise UserError(
            f"config.model.base = {config.model.base!r} keeps the layers' kernels quantised, which "
            "adapters alone can train on: set config.lora, or config.model.base=none"
        )
    if config.model.offload and config.lora is None:
        raise UserError(
            "config.model.offload keeps the layers' kernels in the host's memory, where adapters "
            "alone can train on them: set config.lora, or config.model.offload=False"
        )
    if config.model.offload and config.model.remat == "none":
        raise UserError(
            "config.model.offload with config.model.remat = 'none': every layer that was brought "
            "would be kept for the backward pass; set another remat"
        )
    for path in ("trainable", "lora.targets"):
        value = _get(config, path)
        try:
            re.compile(value or "")
        except (re.error, TypeError) as error:
            raise UserError(f"config.{path} = {value!r} is not a regex: {error}") from error
    if not config.model.source:
        raise UserError("config.model.source is empty; name a model, a folder or a hub id")
    for path in _TEXTS:
        _check_texts(path, _get(config, path))
    for path in ("lora.rslora", "lora.dora"):
        value = _get(config, path)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"config.{path} = {value!r}: it must be True or False")
    wandb = config.log.wandb
    if wandb is not None and not isinstance(wandb, ConfigDict | dict):
        raise UserError(f"config.log.wandb = {wandb!r}: give {{'project': NAME}}, or None")
    if config.checkpoint.best:
        _check_best(config.checkpoint.best, config)


def _check_texts(path: str, value: Any) -> None:
    """Refuses what is no list of texts."""
    listed = isinstance(value, list | tuple)
    if not listed or not all(isinstance(text, str) and text for text in value):
        raise UserError(f"config.{path} = {value!r}: a list of texts, none of them empty, is meant")


def _check_best(best: Any, config: Any) -> None:
    best = list(best) if isinstance(best, list | tuple) else best
    where = f"config.checkpoint.best = {best!r}"
    if not isinstance(best, list) or len(best) != 2 or best[1] not in ("min", "max"):
        raise UserError(f"{where}: give a metric and 'min' or 'max', as in ['eval/loss', 'min']")
    if config.data.validation is None:
        raise UserError(f"{where} needs held-out data: give config.data.validation")


def _check_keys(given: Any, known: ConfigDict, where: str) -> None:
    check_keys(given, known, where)
    for key, default in known.items(preserve_field_references=True):
        path = f"{where}.{key}"
        if key not in given:
            raise UserError(f"{path} is missing; begin with ptjax.config.defaults()")
        if isinstance(default, ConfigDict) and path.removeprefix("config.") not in _OPEN:
            if not isinstance(given[key], ConfigDict):
                raise UserError(f"{path} = {given[key]!r}: a group of settings is expected")
            _check_keys(given[key], default, path)
        needed = not isinstance(default, FieldReference | ConfigDict | None)
        if given[key] is None and needed and path.removeprefix("config.") not in _UNSET:
            raise UserError(f"{path} is None; its default is {default!r}")


def _get(config: Any, path: str) -> Any:
    """The value at a path; None where a group on the way is unset or lacks the key."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, ConfigDict) else None
    return value
