"""Configs are plain Python files whose `get_config()` returns an `ml_collections.ConfigDict`.

`--config=configs/sft.py:arg` loads one, `--config.a.b=value` sets a field with the type of its
default. Every mistake is one line. Nothing here imports jax, so that `--help` is quick.
"""

from typing import Any

from ml_collections.config_dict import ConfigDict

from ptjax.config.check import check
from ptjax.config.choice import choose
from ptjax.config.cli import Flag, parse
from ptjax.config.defaults import defaults, lora
from ptjax.config.fields import leaves, override
from ptjax.config.file import describe, load, require
from ptjax.config.record import changed_keys, config_hash, facts, from_json, to_json

Config = Any
"""A ConfigDict to those who read it: what its fields hold, only `defaults` knows."""

__all__ = [
    "Config",
    "ConfigDict",
    "Flag",
    "changed_keys",
    "check",
    "choose",
    "config_hash",
    "defaults",
    "describe",
    "facts",
    "from_json",
    "leaves",
    "load",
    "lora",
    "override",
    "parse",
    "require",
    "to_json",
]
